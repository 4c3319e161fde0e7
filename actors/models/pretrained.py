"""The weights of a model's folder, all of them or none: what a folder lacks would be random without
a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from rayward.data.model_files.folder import cannot_load, not_full, not_whole
from rayward.data.model_files.hub_models import trusted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
"""Settings of a generation config that say how to sample, and the values that transformers lets
stand without.
"""


def pretrained(auto: Any, folder: str, config: Any, dtype: str, fresh: Sequence[str] = ()) -> Any:
    """The model of a folder by an `auto` class of transformers; `dtype` "auto": that of its files.

    Weights whose names begin as one of `fresh` may be missing. ValueError with the folder and the
    reason where it cannot be loaded, or is not whole.
    """
    if told := not_full(folder, config):
        raise ValueError(f"{folder} {told}")
    how = {
        "dtype": DTYPES.get(dtype, dtype),
        "trust_remote_code": trusted(),
        "output_loading_info": True,
    }
    try:
        model, found = auto.from_pretrained(
            folder, config=config, ignore_mismatched_sizes=True, **how
        )
    except Exception as error:  # transformers and custom code raise what they like
        raise ValueError(f"{folder} {cannot_load(error)}") from error
    if told := not_whole(model, found, fresh):
        raise ValueError(f"{folder} {told}")
    return model


def let_it_be_written(model: Any) -> None:
    """Mend a model's generation config that transformers reads and refuses to write, so that it
    generates as before.

    Settings of sampling without `do_sample` (Vicuna's) mean sampling; with `do_sample: false`, or a
    temperature of 0, they mean nothing. Where more is wrong, the ids of its special tokens are kept
    alone, which is said.
    """
    generation = model.generation_config if model.can_generate() else None
    if generation is None or not _not_written(generation):
        return
    if (generation.pad_token_id or 0) < 0:
        generation.pad_token_id = None
    given = [
        name
        for name, neutral in SAMPLING.items()
        if getattr(generation, name) not in (None, neutral)
    ]
    if given and generation.do_sample is None and generation.temperature != 0:
        generation.do_sample = True
    elif given and not generation.do_sample:
        for name in given:
            setattr(generation, name, None)
    if told := _not_written(generation):
        print(
            "the model's generation config is not kept but for its token ids, since transformers "
            f"refuses it: {told}"
        )
        kept = {
            name: getattr(generation, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        model.generation_config = GenerationConfig(**kept)


def _not_written(generation: GenerationConfig) -> str:
    """Why transformers would not write it; "" where it would."""
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""
