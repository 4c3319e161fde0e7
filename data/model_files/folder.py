"""What is missing in a model's folder, or of the wrong kind, told without loading its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayward.data.model_files.hub_models import (
    config_of,
    first_line,
    has_score_head,
    read_json,
    trusted,
)

KINDS = {True: "a reward model (one score head, decoder only)", False: "a causal language model"}
MASKS = re.compile(
    r"\.attn(\.attention)?\.(masked_)?bias$|\.attn\.causal_mask$|\.inv_freq$|\.position_ids$"
)
"""Constants that earlier transformers wrote beside the weights of GPT-2, GPT-Neo, GPT-J, CodeGen
and others.
"""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def faults(
    folder: Path, scores: bool | None, with_tokenizer: bool = True, context_tokens: int = 0
) -> list[str]:
    """Sentences, none where a model can be used. `scores`: it must give scores, or text, or either
    (None).

    `context_tokens`: it must be able to read so many.
    """
    if not (folder / "config.json").is_file():
        return [f"{folder} holds no model (no config.json)"]
    try:
        config = config_of(folder)
    except (
        Exception
    ) as error:  # transformers raises what it likes, for custom code and broken JSON alike
        if "trust_remote_code" in str(error):
            return [
                f"{folder} brings code of its own, which runs only with model.trust_remote_code: "
                "true (in commands without a config: RAYWARD_TRUST_REMOTE_CODE=1)"
            ]
        return [f"{folder}/config.json cannot be read: {first_line(error)}"]
    unfit = [*_kind(config, scores), *_weights(folder, config)]
    found = [
        *(unfit or filter(None, [_named_otherwise(folder, config)])),
        *(["holds no tokenizer"] if with_tokenizer and not has_tokenizer(folder) else []),
        *_positions(config, context_tokens),
    ]
    return [f"{folder} {told}" for told in found]


def not_full(folder: str | Path, config: Any) -> str:
    """Why its weights are not those of a model that can be trained; "" where they are.

    transformers puts an adapter that lies beside a model on it, and freezes the model.
    """
    if (Path(folder) / "adapter_config.json").is_file():
        return "holds an adapter (adapter_config.json), which has to be merged into its model first"
    if quantized := getattr(config, "quantization_config", None):
        given = quantized if isinstance(quantized, dict) else quantized.to_dict()
        return (
            f"holds quantized weights ({given.get('quant_method', 'of an unknown kind')}): take "
            "the model in bf16"
        )
    return ""


def not_whole(model: Any, found: Mapping[str, Any], fresh: Sequence[str] = ()) -> str:
    """Why a model that transformers made is not that of its folder, given what it `found`
    (`output_loading_info`).

    transformers draws a weight that no file holds, and drops one that the model has no place for. A
    folder whose names carry a prefix (saved out of a wrapper), that was cut, or whose config is
    another model's, loads so. Weights whose names begin as one of `fresh` may be missing.
    """
    if misshapen := sorted(found["mismatched_keys"]):
        name, held, wanted = misshapen[0]
        return (
            f"holds {len(misshapen)} weights of another shape than its config.json gives them, "
            f"first {name}: {list(held)}, not {list(wanted)}; config and weights are of two models"
        )
    lost = sorted(name for name in found["missing_keys"] if not name.startswith(tuple(fresh)))
    body, extra = (
        model.base_model_prefix + ".",
        getattr(model.config, "num_nextn_predict_layers", None),
    )
    other = [
        name for name in found["unexpected_keys"] if not name.startswith(("lm_head.", "score."))
    ]
    other = [name for name in other if not MASKS.search(name)]
    beyond = sorted(name for name in other if lost or (name.startswith(body) and not extra))
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


def positions(config: Any) -> int | None:
    """Tokens that a model of this config can read at once, where it says so."""
    held = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(held) if held and held > 0 else None  # XLNet's -1 means none


def _kind(config: Any, scores: bool | None) -> Iterator[str]:
    """Of what kind it is, where that is not the one that is wanted."""
    from transformers.models.auto import modeling_auto as known

    names = config.architectures or [
        known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)
    ]
    told = f"is a {', '.join(names)}"
    custom = getattr(config, "auto_map", None) or {}
    classes = {
        False: (known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"),
        True: (
            known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            "AutoModelForSequenceClassification",
        ),
    }
    kinds = {
        of: bool(set(names) & set(mapping.values())) or auto in custom
        for of, (mapping, auto) in classes.items()
    }
    encoder = (
        config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder
    )
    wanted = [scores] if scores is not None else [False, True]
    if not any(kinds[of] for of in wanted) or (encoder and not custom):
        yield f"{told}, and {' or '.join(KINDS[of] for of in wanted)} is needed"
    elif kinds[True] and config.num_labels != 1:
        yield f"has a head of {config.num_labels} labels, and a reward model has 1"


def _weights(folder: Path, config: Any) -> Iterator[str]:
    """What is missing of its weights."""
    if told := not_full(folder, config):
        yield told
        return
    files = {path.name for path in folder.iterdir()}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
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


def _named_otherwise(folder: Path, config: Any) -> str:
    """`not_whole` by the names and shapes of its weights alone, which are not read."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, logging

    auto = AutoModelForSequenceClassification if has_score_head(config) else AutoModelForCausalLM
    how = {
        "trust_remote_code": trusted(),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # its table of the names says the same, at length
    logging.disable_progress_bar()
    try:
        return not_whole(*auto.from_pretrained(folder, config=config, device_map="meta", **how))
    except Exception as error:  # transformers and custom code raise what they like
        return cannot_load(error)
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def cannot_load(error: Exception) -> str:
    """What transformers says of a model that it cannot load, in a line."""
    return f"cannot be loaded as a model: {type(error).__name__}: {first_line(error)}"


def _positions(config: Any, context_tokens: int) -> Iterator[str]:
    held = positions(config)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Beyond that number.
    stretched = any(isinstance(of, dict) and of.get("factor") for of in (rope, *rope.values()))
    if held and held < context_tokens and not stretched:
        yield (
            f"reads {held} tokens at most, and model.context_tokens is {context_tokens}: lower "
            "it, or rayward extend --context makes a model that reads more"
        )
