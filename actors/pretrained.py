"""The weights of a model's folder, all of them or none: what a folder lacks would be random without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from data.hub_models import trusted
from data.model_folder import cannot_load, not_full, not_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pretrained(auto: Any, folder: str, config: Any, dtype: str, fresh: Sequence[str] = ()) -> Any:
    """The model of a folder by an `auto` class of transformers; `dtype` "auto": that of its files.

    Weights whose names begin as one of `fresh` may be missing. ValueError with the folder and the reason where it
    cannot be loaded, is not whole, or could not be saved again.
    """
    if told := not_full(folder, config):
        raise ValueError(f"{folder} {told}")
    how = {"dtype": DTYPES.get(dtype, dtype), "trust_remote_code": trusted(), "output_loading_info": True}
    try:
        model, found = auto.from_pretrained(folder, config=config, ignore_mismatched_sizes=True, **how)
    except Exception as error:  # transformers and custom code raise what they like
        raise ValueError(f"{folder} {cannot_load(error)}") from error
    if told := not_whole(model, found, fresh):
        raise ValueError(f"{folder} {told}")
    if model.can_generate():
        _let_it_be_saved(model.generation_config, folder)
    return model


def _let_it_be_saved(generation: Any, folder: str) -> None:
    """Say `do_sample` where a generation config only means it, as Vicuna's with its temperature: transformers reads
    such a file and refuses to write it, which would be when the model is trained. ValueError where more is wrong."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
    try:
        generation.validate(strict=True)
    except ValueError as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{folder}/generation_config.json: {told} Mend that file, or take it away") from error
