"""Which parts of a run a command makes, and whether what is there already fits them.

A part is a stage, or one algorithm of RL (`rl/ppo`). Nothing here starts or removes anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayward.configs.decisive import decisive
from rayward.configs.load import ConfigError
from rayward.configs.plan import INPUTS, followers, inputs
from rayward.configs.stages import RL_PARTS, STAGES, all_parts, parts, suite_parts
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import NOT_READ, Run
from rayward.pipelines.run.stage import MAY_BE_MISSING

PARTS_OF = {"rl": RL_PARTS}
"""Stages of several parts."""
AGAIN = ("evaluate", "publish")
"""Parts made again where what they read is another now: quick, and about whatever is there."""


def parse_stages(text: str | None) -> tuple[str, ...]:
    """Stage names of a comma-separated list, in the order of the road. ConfigError if unknown."""
    return STAGES if text is None else _names(text, STAGES)


def parse_redo(text: str | None) -> tuple[str, ...]:
    """Parts to make again: stages, or `rl/ppo` and such; `rl` is all. ConfigError if unknown.

    Which suites `evaluate/NAME` there are, `check_stages` knows.
    """
    said = [name.strip() for name in (text or "").split(",")]
    suites = tuple(dict.fromkeys(name for name in said if name.startswith("evaluate/")))
    others = ",".join(name for name in said if name not in suites)
    names = _names(others, (*STAGES, *PARTS_OF["rl"]))
    return (*(part for name in names for part in PARTS_OF.get(name, (name,))), *suites)


def _names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown stage {name!r}; stages: {', '.join(known)}")
    return tuple(stage for stage in known if stage in names)


def parse_partial(text: str | None) -> frozenset[str]:
    """Parts of a checkpoint that may be missing. ConfigError for one that cannot."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in MAY_BE_MISSING:
            raise ConfigError(
                f"--allow-partial {name!r}: no part of a checkpoint that can begin anew; these "
                f"can: {', '.join(MAY_BE_MISSING)}"
            )
    return frozenset(names)


def to_make(run: Run, stages: Sequence[str], redo: Sequence[str] = ()) -> set[str]:
    """The parts that the command makes: those not done, those that `redo` removes, and AGAIN."""
    wanted = [part for stage in stages for part in parts(run.config, stage)]
    gone = {name for part in redo for name in followers(part)}
    made = {part for part in wanted if part in gone or not run.done(part)}
    for part in suite_parts(run.config) if "evaluate" in wanted else ():
        # One of other settings is none of them: `check_suites` tells it.
        followed = run.state(part) == "done" and other_inputs(run, part, made)
        if part in redo or not run.done(part) or followed:
            made.add(part)
    # In the order of the road: publish looks at what evaluate has become.
    for part in AGAIN:
        if part in wanted and part not in made and other_inputs(run, part, made):
            made.add(part)
    return made


def check_stages(run: Run, stages: Sequence[str], redo: Sequence[str]) -> None:
    """ConfigError where `redo` removes what the command does not make, or it names a null stage."""
    # All of STAGES is what a command means that names none: then those left out are passed over.
    named = () if tuple(stages) == STAGES else stages
    null = [stage for stage in named if not parts(run.config, stage)]
    if null:
        raise ConfigError(
            f"this config leaves out {null[0]} ({null[0]}: null); give it a section, at least {{}}"
        )
    wanted = [part for stage in stages for part in parts(run.config, stage)]
    known = suite_parts(run.config) if "evaluate" in wanted else ()
    if unknown := [part for part in redo if part.startswith("evaluate/") and part not in known]:
        raise ConfigError(
            f"--redo {unknown[0]}: no suite that this command makes; there are "
            f"{', '.join(known) or 'none'}"
        )
    gone = {name for part in redo for name in followers(part) if (run.folder / name).exists()}
    if left := [name for name in INPUTS if name in gone and name not in wanted]:
        raise ConfigError(
            f"--redo {','.join(redo)} would remove {', '.join(left)} too, which this command does "
            "not make again; use rayward align with --redo, or name the stages with --stages"
        )


def check_made(run: Run, stages: Sequence[str], made: set[str]) -> None:
    """StageError where a part that the command keeps or reads is of other settings or parts.

    Each stage would find that by itself, but only when its turn comes, after hours of others.
    """
    wanted = [part for stage in stages for part in parts(run.config, stage)]
    configured = all_parts(run.config)
    for part in INPUTS:
        read = part in wanted or any(part in INPUTS[other] for other in wanted)
        if not read or part not in configured or part in made or not run.done(part):
            continue
        if run.state(part) == "done with other settings":
            raise run.conflict(part, decisive(run.config, part))
        run.require_rows_of_today(part)
        if part not in AGAIN and (changes := other_inputs(run, part, made)):
            raise StageError(
                f"{run.folder / part} was made of other parts of the run: {changes}. Nothing was "
                "overwritten. Choose another folder with --run, or make it again, with all that "
                f"follows from it: rayward align CONFIG --redo {part}"
            )


def other_inputs(run: Run, part: str, made: set[str]) -> str:
    """In what way the parts that a finished one was made of are others now; "" where they are the
    same. `made`: those that the command makes."""
    # Name to fingerprint, as they were when the part was made.
    before: dict[str, str] = run.manifest(part)["settings"].get("inputs", {})
    current = inputs(run.config, part)
    if part.startswith("evaluate"):  # the models that are there
        current = tuple(
            name for name in current if name in before or run.done(name) or name in made
        )
    elif part == "publish":  # one of them
        current = tuple(name for name in current if name in before)
    changes = [f"{name} was none of them" for name in current if name not in before]
    changes += [
        f"{name} is none of them now"
        for name in before
        if name not in (*current, *NOT_READ.get(part, ()))
    ]
    for name in current:
        # What this command makes counts as another, also with the same settings: its fingerprint
        # is of settings and inputs, and is known only when it is made.
        if name in before and (name in made or run.manifest(name)["fingerprint"] != before[name]):
            changes.append(f"{name} is made anew")
    return "; ".join(changes)
