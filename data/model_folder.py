"""What is missing in a model's folder, or of the wrong kind, told without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.hub_models import config_of

KINDS = {True: "a reward model (one score head, decoder only)", False: "a causal language model"}
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def faults(folder: Path, scores: bool | None, with_tokenizer: bool = True, context_tokens: int = 0) -> list[str]:
    """Sentences, none where a model can be used. `scores`: it must give scores, or text, or either (None).

    `context_tokens`: it must be able to read so many.
    """
    if not (folder / "config.json").is_file():
        return [f"{folder} holds no model (no config.json)"]
    try:
        config = config_of(folder)
    except Exception as error:  # transformers raises what it likes, for custom code and broken JSON alike
        if "trust_remote_code" in str(error):
            return [
                f"{folder} brings code of its own, which runs only with model.trust_remote_code: true (in commands "
                "without a config: RAYWARD_TRUST_REMOTE_CODE=1)"
            ]
        return [f"{folder}/config.json cannot be read: {str(error).splitlines()[0]}"]
    return [
        *(f"{folder} {told}" for told in _kind(config, scores)),
        *(f"{folder} {told}" for told in _weights(folder)),
        *([f"{folder} holds no tokenizer"] if with_tokenizer and not has_tokenizer(folder) else []),
        *(f"{folder} {told}" for told in _positions(config, context_tokens)),
    ]


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files of one."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def positions(config: Any) -> int | None:
    """Tokens that a model of this config can read at once, where it says so."""
    held = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(held) if held else None


def _kind(config: Any, scores: bool | None) -> Iterator[str]:
    """Of what kind it is, where that is not the one that is wanted."""
    from transformers.models.auto import modeling_auto as known

    names = config.architectures or [known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)]
    told = f"is a {', '.join(names)}"
    custom = getattr(config, "auto_map", None) or {}
    classes = {
        False: (known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"),
        True: (known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "AutoModelForSequenceClassification"),
    }
    kinds = {of: bool(set(names) & set(mapping.values())) or auto in custom for of, (mapping, auto) in classes.items()}
    encoder = config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder
    wanted = [scores] if scores is not None else [False, True]
    if not any(kinds[of] for of in wanted) or (encoder and not custom):
        yield f"{told}, and {' or '.join(KINDS[of] for of in wanted)} is needed"
    elif kinds[True] and config.num_labels != 1:
        yield f"has a head of {config.num_labels} labels, and a reward model has 1"


def _weights(folder: Path) -> Iterator[str]:
    """What is missing of its weights."""
    files = {path.name for path in folder.iterdir()}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if index in files and not files & {"model.safetensors", "pytorch_model.bin"}:
            shards = set(json.loads((folder / index).read_text(encoding="utf-8")).get("weight_map", {}).values())
            if lost := sorted(shards - files):
                yield f"lacks {len(lost)} of {len(shards)} files of weights that {index} names, first {lost[0]}"
            return
    if not any(name.endswith((".safetensors", ".bin")) and not name.startswith("adapter") for name in files):
        adapter = "an adapter, which has to be merged into its model first" if "adapter_config.json" in files else ""
        yield f"holds {adapter or 'no weights (no .safetensors or .bin file)'}"


def _positions(config: Any, context_tokens: int) -> Iterator[str]:
    held = positions(config)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    stretched = any(isinstance(of, dict) and of.get("factor") for of in (rope, *rope.values()))  # beyond that number
    if held and held < context_tokens and not stretched:
        yield (
            f"reads {held} tokens at most, and model.context_tokens is {context_tokens}: lower it, or rayward extend "
            "--context makes a model that reads more"
        )
