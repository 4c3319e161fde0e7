"""What a training goes on from, in files that any number of ranks reads at any ZeRO stage.

A rank holds runs of consecutive elements of some weights: all of each (ZeRO 0), its share of a
group of weights laid end to end (1 and 2), or its share of each (3). It writes those, in fp32, with
the name of the weight and where in it they begin; each reader takes what it holds out of the files
of all that wrote, a weight at a time, from pages that the system brings in as they are read. So no
rank needs memory for more than it has, and with the layout that wrote every bit is as it was.
DeepSpeed's own files fit the layout alone that wrote them (its universal ones know no ZeRO 0).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from rayward.actors.pulse import tick

WEIGHTS, OPTIMIZER, RANDOM = "weights", "optimizer", "random"
"""Parts of a state: files `PART-RANK.pt`, and `weights.json`, which says whose they are."""
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


class Held:
    """What this rank holds of the weights that learn: `blocks`, for each of which Adam has one
    state, and the `pieces` in them.
    """

    blocks: list[Tensor]
    pieces: list[Piece]

    def __init__(self, engine: Any, adam: torch.optim.AdamW, zero_stage: int) -> None:
        """`engine`: DeepSpeed's; `adam`: the optimizer that it was given."""
        self.zero, self.adam, self.stage = engine.optimizer, adam, zero_stage
        learning = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
        # Under ZeRO-3 a weight that is not gathered is empty.
        self.shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in learning}
        match zero_stage:
            case 0:
                self.blocks = [p for _, p in learning]
                self.pieces = [
                    Piece(name, 0, p.numel(), block, 0) for block, (name, p) in enumerate(learning)
                ]
            case 3:
                self.blocks = self.zero.fp32_partitioned_groups_flat
                self.pieces = [piece for name, p in learning for piece in self._share(name, p)]
            case _:
                self.blocks = self.zero.single_partition_of_fp32_groups
                self.pieces = [
                    Piece(
                        name,
                        part.lp_fragment_address.start,
                        part.lp_fragment_address.numel,
                        part.param_group_index,
                        part.hp_fragment_address.start,
                    )
                    for name, p in learning
                    if (part := p._hp_mapping) is not None  # None: all of it is of other ranks
                ]

    def _share(self, name: str, weight: Any) -> Iterable[Piece]:
        """Of a weight under ZeRO-3: as many elements on each rank, the last ones filled up."""
        block, offset, size = self.zero.grad_position[self.zero.get_param_id(weight)]
        start = size * torch.distributed.get_rank()
        if (count := min(size, weight.ds_numel - start)) > 0:
            yield Piece(name, start, count, block, offset)

    def write(self, folder: Path) -> None:
        """This rank's files of weights and optimizer."""
        rank, pieces = torch.distributed.get_rank(), self.pieces
        if self.stage == 0:  # where every rank has all
            pieces = pieces[rank :: torch.distributed.get_world_size()]
        blocks = sorted({piece.block for piece in pieces})
        number = {block: index for index, block in enumerate(blocks)}
        # Of plain values, which can be read without running code.
        told = [astuple(piece)[:3] + (number[piece.block], piece.offset) for piece in pieces]
        for part, contents in (
            (WEIGHTS, [{"weight": _own(self.blocks[block])} for block in blocks]),
            (OPTIMIZER, [self._adam_of(block) for block in blocks]),
        ):
            save({"pieces": told, "blocks": contents}, folder / f"{part}-{rank}.pt")

    def _adam_of(self, block: int) -> Block:
        """Nothing before its first step."""
        state = self.adam.state.get(self.blocks[block], {})
        return {name: _own(value) for name, value in state.items()}

    @torch.no_grad()
    def read(self, folder: Path, optimizer: bool = True) -> None:
        """Take up what any ranks wrote, Adam's state only with `optimizer`. A collective.

        ValueError where it is of other weights, or a file is missing.
        """
        weights = Saved(folder, WEIGHTS, self.shapes)
        moments = Saved(folder, OPTIMIZER, self.shapes) if optimizer else None
        if self.stage == 3:
            self.zero.checkpoint_event_prologue()
        for piece in self.pieces:
            weights.copy("weight", piece, piece.of(self.blocks[piece.block]))
        for number, block in enumerate(self.blocks):
            pieces = [piece for piece in self.pieces if piece.block == number]
            steps = max((moments.steps(piece) for piece in pieces), default=0) if moments else 0
            if moments and steps:
                self._read_adam(block, moments, pieces, steps)
            else:
                self.adam.state.pop(block, None)
        self._refresh()

    def _read_adam(self, block: Tensor, moments: Saved, pieces: list[Piece], steps: float) -> None:
        # As torch makes it in the first step, which finds it here.
        state = self.adam.state[block]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=block.device)
            state |= {name: torch.zeros_like(block) for name in MOMENTS}
        state["step"].fill_(steps)
        for name in MOMENTS:
            state[name].zero_()  # also what fills a block up, and what had no gradient so far
            for piece in pieces:
                moments.copy(name, piece, piece.of(state[name]))

    def _refresh(self) -> None:
        """Let DeepSpeed make the model's weights of its own in fp32, as after a step."""
        if self.stage == 3:
            for block in range(len(self.blocks)):
                self.zero._reassign_or_swap_out_partitioned_parameters(block)
            if persistent := self.zero.persistent_parameters:
                persistent[0].partition(persistent)
            self.zero.checkpoint_event_epilogue()
        elif self.stage:
            self.zero.update_lp_params()


class _Ticking:
    """A file that is written; each piece of it is a sign of life."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, piece: bytes) -> int:
        tick()
        return self.file.write(piece)

    def flush(self) -> None:
        self.file.flush()


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


def _own(tensor: Tensor) -> Tensor:
    """Itself, or where more stands in the same memory, which would be written too, a copy."""
    tensor = tensor.detach()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()


def write_layout(folder: Path, layout: Mapping[str, Any]) -> None:
    """Say whose files these are; one rank calls it."""
    (folder / f"{WEIGHTS}.json").write_text(json.dumps(dict(layout)), encoding="utf-8")


def read_layout(folder: Path) -> dict[str, Any]:
    """What `write_layout` said."""
    layout: dict[str, Any] = json.loads((folder / f"{WEIGHTS}.json").read_text(encoding="utf-8"))
    return layout


def write_random(folder: Path, device: torch.device) -> None:
    """The state of this rank's random numbers."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    save(states, folder / f"{RANDOM}-{torch.distributed.get_rank()}.pt")


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
