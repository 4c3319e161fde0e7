"""What is missing in a model's folder, or of the wrong kind, told without loading its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.model_files.hub_models import (
    config_of,
    first_line,
    has_score_head,
    read_json,
    trusted,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

KINDS = {True: "a reward model (one score head, decoder only)", False: "a causal language model"}
CONSTANTS = re.compile(
    r"\.attn(\.attention)?\.(masked_)?bias$|\.attn\.causal_mask$|\.inv_freq$|\.position_ids$"
)
"""What earlier transformers wrote beside the weights of GPT-2, GPT-Neo, GPT-J, CodeGen and
others."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def faults(
    folder: Path, scores: bool | None, with_tokenizer: bool = True, context_tokens: int = 0
) -> list[str]:
    """Sentences, none where a model can be used.

    `scores`: it must give scores (True), or text (False), or either (None). `context_tokens`: it
    must be able to read so many.
    """
    if not (folder / "config.json").is_file():
        return [f"{folder} holds no model (no config.json)"]
    try:
        config = config_of(folder)
    # transformers raises what it likes, for custom code and broken JSON alike.
    except Exception as error:
        if "trust_remote_code" in str(error):
            return [
                f"{folder} brings code of its own, which runs only with model.trust_remote_code: "
                "true (in commands without a config: RAYWARD_TRUST_REMOTE_CODE=1)"
            ]
        return [f"{folder}/config.json cannot be read: {first_line(error)}"]
    problems = [*_kind(config, scores), *_weights(folder, config)]
    # Names are compared by making the model, which fails in its own words where these do not fit.
    if not problems:
        problems += filter(None, [_named_otherwise(folder, config)])
    if with_tokenizer and not has_tokenizer(folder):
        problems.append("holds no tokenizer")
    problems += _positions(config, context_tokens)
    return [f"{folder} {problem}" for problem in problems]


def not_full(folder: str | Path, config: PreTrainedConfig) -> str:
    """Why its weights are not those of a model that can be trained; "" where they are.

    transformers puts an adapter that lies beside a model on it, and freezes the model.
    """
    if (Path(folder) / "adapter_config.json").is_file():
        return "holds an adapter (adapter_config.json), which has to be merged into its model first"
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        # A dict of a published config.json, an object of a model that was loaded.
        settings = quantized if isinstance(quantized, dict) else quantized.to_dict()
        return (
            f"holds quantized weights ({settings.get('quant_method', 'of an unknown kind')}): take "
            "the model in bf16"
        )
    return ""


def not_whole(
    model: PreTrainedModel, loading_info: Mapping[str, Any], fresh: Sequence[str] = ()
) -> str:
    """Why a model that transformers made is not that of its folder, by its `loading_info`.

    transformers draws a weight that no file holds, and drops one that the model has no place for. A
    folder whose names carry a prefix (saved out of a wrapper), that was cut, or whose config is
    another model's, loads so. Weights whose names begin as one of `fresh` may be missing.
    """
    if misshapen := sorted(loading_info["mismatched_keys"]):
        name, held, wanted = misshapen[0]
        return (
            f"holds {len(misshapen)} weights of another shape than its config.json gives them, "
            f"first {name}: {list(held)}, not {list(wanted)}; config and weights are of two models"
        )
    missing = loading_info["missing_keys"]
    lost = sorted(name for name in missing if not name.startswith(tuple(fresh)))
    body = model.base_model_prefix + "."
    # Layers for predicting several tokens (DeepSeek V3): published beside the body, not used.
    extra_layers = getattr(model.config, "num_nextn_predict_layers", None)
    # The head that this kind of model lacks is left out on purpose, and constants are no weights.
    other = [
        name
        for name in loading_info["unexpected_keys"]
        if not name.startswith(("lm_head.", "score.")) and not CONSTANTS.search(name)
    ]
    # Where nothing is lost, only what bears the body's name counts: other heads may lie beside it.
    beyond = sorted(name for name in other if lost or (name.startswith(body) and not extra_layers))
    has = f"{len(beyond)} that config.json has no place for, first {beyond[0]}" if beyond else ""
    if lost:
        return (
            f"lacks {len(lost)} weights of a {type(model).__name__}, first "
            f"{lost[0]}{has and ', and holds '}{has}: they would be random. Its files are cut, or "
            "their names are not those of transformers"
        )
    return f"holds weights that would be left out: {has}" if has else ""


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files of one."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def positions(config: PreTrainedConfig) -> int | None:
    """Tokens that a model of this config can read at once, where it says so."""
    count = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(count) if count and count > 0 else None  # XLNet's -1 means none


def _kind(config: PreTrainedConfig, scores: bool | None) -> Iterator[str]:
    """Of what kind it is, where that is not the one that is wanted."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    scoring = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    # A config without architectures is of the causal model of its type.
    names = config.architectures or [causal.get(config.model_type, config.model_type)]
    # Code of its own names its classes here, which no table of transformers knows.
    custom = getattr(config, "auto_map", None) or {}
    is_kind = {
        False: bool(set(names) & set(causal.values())) or "AutoModelForCausalLM" in custom,
        True: bool(set(names) & set(scoring.values()))
        or "AutoModelForSequenceClassification" in custom,
    }
    encoder = config.model_type in masked or config.is_encoder_decoder
    wanted = [scores] if scores is not None else [False, True]
    if not any(is_kind[kind] for kind in wanted) or (encoder and not custom):
        needed = " or ".join(KINDS[kind] for kind in wanted)
        yield f"is a {', '.join(names)}, and {needed} is needed"
    elif is_kind[True] and config.num_labels != 1:
        yield f"has a head of {config.num_labels} labels, and a reward model has 1"


def _weights(folder: Path, config: PreTrainedConfig) -> Iterator[str]:
    """What is missing of its weights."""
    fault = not_full(folder, config)
    if fault:
        yield fault
        return
    files = {path.name for path in folder.iterdir()}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        # A whole file goes before an index, as in transformers.
        if index in files and not files & {"model.safetensors", "pytorch_model.bin"}:
            try:
                shards = set(read_json(folder / index).get("weight_map", {}).values())
            except ValueError as error:
                yield f"cannot be loaded as a model: {error}"
                return
            if lost := sorted(shards - files):
                yield (
                    f"lacks {len(lost)} of {len(shards)} files of weights that {index} names, "
                    f"first {lost[0]}"
                )
            return
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        yield "holds no weights (no .safetensors or .bin file)"


def _named_otherwise(folder: Path, config: PreTrainedConfig) -> str:
    """`not_whole` by the names and shapes of its weights alone, which are not read."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, logging

    auto = AutoModelForSequenceClassification if has_score_head(config) else AutoModelForCausalLM
    arguments = {
        "trust_remote_code": trusted(),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that they are listed instead of raised
    }
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # its table of the names says the same, at length
    logging.disable_progress_bar()
    try:
        # On the device "meta" tensors have shapes and no memory.
        model, loading_info = auto.from_pretrained(
            folder, config=config, device_map="meta", **arguments
        )
        return not_whole(model, loading_info)
    except Exception as error:  # transformers and custom code raise what they like
        return cannot_load(error)
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def cannot_load(error: Exception) -> str:
    """What transformers says of a model that it cannot load, in a line."""
    return f"cannot be loaded as a model: {type(error).__name__}: {first_line(error)}"


def _positions(config: PreTrainedConfig, context_tokens: int) -> Iterator[str]:
    count = positions(config)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # A factor stretches positions beyond that number; some configs have one a kind of layer.
    sections = (rope, *rope.values())
    stretched = any(isinstance(section, dict) and section.get("factor") for section in sections)
    if count and count < context_tokens and not stretched:
        yield (
            f"reads {count} tokens at most, and model.context_tokens is {context_tokens}: lower "
            "it, or rayward extend --context makes a model that reads more"
        )
