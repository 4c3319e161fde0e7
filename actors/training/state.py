"""What a training goes on from, in files that any number of ranks reads at any ZeRO stage.

A rank holds runs of consecutive elements of some weights: all of each (ZeRO 0), its share of a
group of weights laid end to end (1 and 2), or its share of each (3). It writes those, in fp32, with
the name of the weight and where in it they begin; each reader takes what it holds out of the files
of all that wrote, a weight at a time, from pages that the system brings in as they are read. So no
rank needs memory for more than it has, and with the layout that wrote every bit is as it was.
DeepSpeed's own files fit the layout alone that wrote them (its universal ones know no ZeRO 0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayward.actors.pulse import tick
from rayward.actors.training.state_files import MOMENTS, OPTIMIZER, WEIGHTS, Block, Piece, Saved


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

    def _written(self) -> list[Piece]:
        """What this rank writes."""
        if self.stage:
            return self.pieces
        # Where every rank has all.
        return self.pieces[torch.distributed.get_rank() :: torch.distributed.get_world_size()]

    @property
    def bytes(self) -> int:
        """Of all that this rank writes."""
        blocks = {piece.block for piece in self._written()}
        return sum(4 * self.blocks[block].numel() for block in blocks) * (1 + len(MOMENTS))

    def files(self, copied: bool) -> dict[str, Any]:
        """What this rank's files of weights and optimizer hold, by their names. `copied`: into the
        CPU's memory, so that later steps change nothing of it.
        """
        rank, pieces = torch.distributed.get_rank(), self._written()
        blocks = sorted({piece.block for piece in pieces})
        number = {block: index for index, block in enumerate(blocks)}
        # Of plain values, which can be read without running code.
        told = [astuple(piece)[:3] + (number[piece.block], piece.offset) for piece in pieces]
        contents = {
            WEIGHTS: [{"weight": _own(self.blocks[block], copied)} for block in blocks],
            OPTIMIZER: [self._adam_of(block, copied) for block in blocks],
        }
        return {
            f"{part}-{rank}.pt": {"pieces": told, "blocks": values}
            for part, values in contents.items()
        }

    def _adam_of(self, block: int, copied: bool) -> Block:
        """Nothing before its first step."""
        state = self.adam.state.get(self.blocks[block], {})
        return {name: _own(value, copied) for name, value in state.items()}

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


def _own(tensor: Tensor, copied: bool) -> Tensor:
    """Itself, or where more stands in the same memory, which would be written too, a copy."""
    tensor = tensor.detach()
    if copied:
        tick()
        return tensor.to("cpu", copy=True)
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()
