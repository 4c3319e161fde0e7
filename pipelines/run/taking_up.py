"""A checkpoint of an earlier try, and what is said of it: what is restored, what is missing, and
whether the training goes on with other ranks than made it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayward.actors.checkpoints import Checkpoint, Checkpoints, MissingPartError
from rayward.configs.last_bits import LastBits, changes
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.stage import MAY_BE_MISSING, Stage


@dataclass(frozen=True)
class TakenUp:
    """`found`: the checkpoint that a training goes on from; None: it begins. `info`: what its own
    checkpoints say.
    """

    found: Checkpoint | None
    info: Mapping[str, Any]


def take_up(
    stage: Stage,
    title: str,
    made: Checkpoints,
    expected: Sequence[str],
    now: LastBits,
    where: str,
    last: int,
) -> TakenUp:
    """The last checkpoint of a training, with all parts that are `expected` of it.

    `now`: with which ranks and so on it goes on; `where`: in words, for its step and the `last`
    one. Prints what it finds, and tells the stage's manifest. StageError where a part is missing
    that the person has not allowed to be.
    """
    try:
        found, broken = made.latest(expected, stage.run.partial)
    except MissingPartError as error:
        raise StageError(_refusal(error, stage)) from error
    for line in broken:
        print(f"   {title}: a checkpoint is passed over: {line}", flush=True)
    if found is None:
        if broken:
            raise StageError(
                f"{title}: no checkpoint can be read. Nothing was overwritten: put its files back, "
                f"or {_again(stage)}"
            )
        return TakenUp(None, {"made_with": now, "resumed": []})
    found = replace(found, missing=_with_theirs(found.missing, expected))
    if "metrics" in found.missing and found.step >= last:
        raise StageError(
            f"{found.folder} lacks metrics, and no step is left to make any: {_again(stage)}"
        )
    restored = [part for part in expected if part not in found.missing]
    missing = sorted(found.missing)
    print(
        f"   {title}: goes on {where.format(found.step, last)}; restored: {', '.join(restored)}; "
        f"missing: {', '.join(missing) + ' (begins anew)' if missing else 'none'}",
        flush=True,
    )
    changed = changes(found.info.get("made_with", {}), now)
    if changed:
        print(
            f"   {title}: goes on {changed}: no longer equal to the bit, only within rounding",
            flush=True,
        )
    story = [
        *found.info.get("resumed", []),
        {"step": found.step, "changed": changed, "missing": missing},
    ]
    stage.resumed[title] = story
    return TakenUp(found, {"made_with": now, "resumed": story})


def _with_theirs(missing: Collection[str], expected: Sequence[str]) -> frozenset[str]:
    """With the weights of a model all else of it begins anew: it would be of other weights."""
    models = {part.rpartition("/")[0] for part in missing if part.endswith("/weights")}
    theirs = (part for part in expected if part.rpartition("/")[0] in models)
    return frozenset([*missing, *theirs])


def _again(stage: Stage) -> str:
    return f"start over: rayward align CONFIG --redo {stage.name}"


def _refusal(error: MissingPartError, stage: Stage) -> str:
    parts, again = ", ".join(error.parts), _again(stage)
    needed = [part for part in error.parts if part not in MAY_BE_MISSING]
    if needed:
        way = f"Without {', '.join(needed)} nothing can go on: put the files back, or {again}"
    else:
        way = (
            f"Put the files back, let {'it' if len(error.parts) == 1 else 'them'} begin anew with "
            f"--allow-partial {','.join(error.parts)}, or {again}"
        )
    return f"the checkpoint {error.folder} lacks {parts}, whole. Nothing was overwritten. {way}"
