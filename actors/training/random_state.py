"""The random numbers of a rank in a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from rayward.actors.training.state_files import RANDOM


def random_file(device: torch.device) -> dict[str, Any]:
    """The state of this rank's random numbers, by the name of its file."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {f"{RANDOM}-{torch.distributed.get_rank()}.pt": states}


def read_random(folder: Path, device: torch.device, anew: Collection[str] = ()) -> None:
    """Go on with this rank's random numbers. A rank that nobody was before gets its own, which
    follow from those of rank 0 (and so from the seed) and its number.
    """
    rank = torch.distributed.get_rank()
    own, first = (folder / f"{RANDOM}-{number}.pt" for number in (rank, 0))
    if RANDOM in anew:
        _seed(torch.initial_seed(), rank)
    elif own.is_file():
        states = torch.load(own)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], device)
    else:
        _seed(torch.load(first)["cpu"].numpy().tobytes(), rank)


def _seed(of: int | bytes, rank: int) -> None:
    digest = hashlib.sha256(f"{rank} {of!r}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))
