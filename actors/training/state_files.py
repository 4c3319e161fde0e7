"""Files of what a training goes on from: pieces of weights by their names, which ranks write, each
its own, and any number of ranks reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from rayward.actors.pulse import tick

WEIGHTS, OPTIMIZER, RANDOM = "weights", "optimizer", "random"
"""Parts of a state: files `PART-RANK.pt`, and LAYOUT, which says whose they are."""
LAYOUT = f"{WEIGHTS}.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
Block = dict[str, Tensor]
"""Of a file: the elements by their name, a weight's "weight" or Adam's."""


@dataclass(frozen=True)
class Piece:
    """`count` elements of a weight from `start` on (of it as one row), which stand in a block from
    `offset` on.
    """

    name: str
    start: int
    count: int
    block: int
    offset: int

    def of(self, block: Tensor) -> Tensor:
        """[count] the elements themselves, not a copy."""
        return block.detach().view(-1).narrow(0, self.offset, self.count)


class _Ticking:
    """A file that is written; each piece of it is a sign of life."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, piece: bytes) -> int:
        tick()
        return self.file.write(piece)

    def flush(self) -> None:
        self.file.flush()


def write(files: Mapping[str, Any], folder: Path) -> None:
    """Files by their names: JSON, or what torch saves. OSError where one cannot be written."""
    for name, value in files.items():
        if name == LAYOUT:
            (folder / name).write_text(json.dumps(value), encoding="utf-8")
        else:
            save(value, folder / name)


def save(value: Any, path: Path) -> None:
    """torch.save. OSError where it cannot be written, as of any other file."""
    try:
        with path.open("wb") as file:
            torch.save(value, cast(IO[bytes], _Ticking(file)))
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path}: {error}") from error


class Saved:
    """The pieces that all ranks wrote of a part, by the name of their weight."""

    def __init__(self, folder: Path, part: str, shapes: Mapping[str, list[int]]) -> None:
        """ValueError where they do not make up the weights of these `shapes`, no more and no
        less.
        """
        written = read_layout(folder)["weights"]
        if others := sorted(
            name for name in shapes.keys() | written.keys() if shapes.get(name) != written.get(name)
        ):
            name, more = others[0], f" and {len(others) - 1} more" * (len(others) > 1)
            raise ValueError(
                f"{folder} is of other weights: {name}{more} has the shape {written.get(name)} "
                f"there and {shapes.get(name)} here (None: it does not learn)"
            )
        self.pieces: dict[str, list[tuple[Piece, Block]]] = {name: [] for name in shapes}
        for path in sorted(folder.glob(f"{part}-*.pt")):
            saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            for piece in (Piece(*values) for values in saved["pieces"]):
                self.pieces[piece.name].append((piece, saved["blocks"][piece.block]))
        for name, found in self.pieces.items():
            size = torch.Size(shapes[name]).numel()
            if (count := sum(piece.count for piece, _ in found)) != size:
                raise ValueError(
                    f"{folder} has {count} of the {size} elements of {name} in its {part}: a file "
                    "of a rank is missing"
                )

    def copy(self, kind: str, wanted: Piece, into: Tensor) -> None:
        """Fill `into` with the elements of a piece; those that nobody has stay."""
        for piece, block in self.pieces[wanted.name]:
            first = max(piece.start, wanted.start)
            count = min(piece.start + piece.count, wanted.start + wanted.count) - first
            if count > 0 and kind in block:
                found = piece.of(block[kind]).narrow(0, first - piece.start, count)
                into.narrow(0, first - wanted.start, count).copy_(found)

    def steps(self, wanted: Piece) -> float:
        """That Adam had done on a weight."""
        found = self.pieces[wanted.name]
        return max((float(block["step"]) for _, block in found if block), default=0.0)


def read_layout(folder: Path) -> dict[str, Any]:
    """Whose files these are, as one rank wrote it into LAYOUT."""
    layout: dict[str, Any] = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
    return layout
