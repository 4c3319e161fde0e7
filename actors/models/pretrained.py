"""The weights of a model's folder, all or none: what a folder lacks would be random, silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from rayward.data.model_files.folder import cannot_load, not_full, not_whole
from rayward.data.model_files.hub_models import trusted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEUTRAL_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
"""Settings of a generation config that say how to sample, with the values that change nothing:
transformers writes these without `do_sample` too.
"""


def pretrained(
    auto: Any, folder: str, config: PretrainedConfig, dtype: str, fresh: Sequence[str] = ()
) -> PreTrainedModel:
    """The model of a folder by an `auto` class of transformers; `dtype` "auto": that of its files.

    Weights whose names begin as one of `fresh` may be missing. ValueError with the folder and the
    reason where it cannot be loaded, or is not whole.
    """
    # What can be told from the folder before gigabytes of weights are read.
    if problem := not_full(folder, config):
        raise ValueError(f"{folder} {problem}")
    try:
        model, loading_info = auto.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES.get(dtype, dtype),
            trust_remote_code=trusted(),
            # Not an error at once: `not_whole` then names the weights and both shapes.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and custom code raise what they like
        raise ValueError(f"{folder} {cannot_load(error)}") from error
    if problem := not_whole(model, loading_info, fresh):
        raise ValueError(f"{folder} {problem}")
    return model


def make_generation_config_writable(model: PreTrainedModel) -> None:
    """Mend a generation config that transformers reads and refuses to write, to generate as before.

    Settings of sampling without `do_sample` (Vicuna's) mean sampling; with `do_sample: false`, or a
    temperature of 0, they mean nothing. Where more is wrong, the ids of its special tokens are kept
    alone, which is printed.
    """
    # Saving comes after hours of training, and must not fail on a config that came with the model.
    generation = model.generation_config if model.can_generate() else None
    if generation is None or not _write_refusal(generation):
        return
    if (generation.pad_token_id or 0) < 0:
        generation.pad_token_id = None
    given = [
        name
        for name, neutral in NEUTRAL_SAMPLING.items()
        if getattr(generation, name) not in (None, neutral)
    ]
    if given and generation.do_sample is None and generation.temperature != 0:
        generation.do_sample = True
    elif given and not generation.do_sample:
        for name in given:
            setattr(generation, name, None)
    if refusal := _write_refusal(generation):
        print(
            "the model's generation config is not kept but for its token ids, since transformers "
            f"refuses it: {refusal}"
        )
        token_ids = {
            name: getattr(generation, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        model.generation_config = GenerationConfig(**token_ids)


def _write_refusal(generation: GenerationConfig) -> str:
    """Why transformers would not write it; "" where it would."""
    try:
        # As `save_pretrained` does: strict raises for all that reading only logs.
        generation.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""
