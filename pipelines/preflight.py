"""What must be so before a command removes or starts anything; a dry run looks at the same.

All that is wrong with names, files and models is told at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayward.configs.load import ConfigError
from rayward.configs.named import CRITICS, NamedModel, named_models
from rayward.configs.needs import lists_read
from rayward.configs.plan import INPUTS, critic_start, decisive, followers, inputs
from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS
from rayward.configs.sections.rl import WITH_CRITIC
from rayward.configs.stages import STAGES, all_parts, parts
from rayward.data.model_files.folder import faults
from rayward.data.model_files.hub_models import FORM, is_hub_name, local
from rayward.pipelines.run.stage import NOT_READ, Run, StageError

AGAIN = ("evaluate", "publish")
"""Parts that are made again where what they read is another now: quick to do, and about whatever is
there.
"""


def preflight(
    run: Run,
    stages: Sequence[str],
    redo: Sequence[str] = (),
    keep: bool = False,
    replay: Path | None = None,
) -> set[str]:
    """The parts that the command makes. Models are looked at by `check_models`.

    ConfigError where the command line does not fit the config, or names something that does not
    exist; StageError where the folder holds what was made otherwise, or rows and functions are not
    there.
    """
    check_names(run.config)
    if keep and not ("publish" in stages and parts(run.config, "publish")):
        raise ConfigError(
            "--keep leaves the endpoint of publish up, and publish is not among the stages to run"
        )
    check_stages(run, stages, redo)
    made = to_make(run, stages, redo)
    check_made(run, stages, made)
    if replay:
        check_replay(run, replay, redo)
    check_files(run, made)
    if any(parts(run.config, stage) for stage in stages if stage in ("sample", "rl", "evaluate")):
        check_functions(run.config)
    return made


def to_make(run: Run, stages: Sequence[str], redo: Sequence[str] = ()) -> set[str]:
    """The parts that the command makes: those that are not done, that `redo` removes, and that
    follow what is there.
    """
    wanted = [part for stage in stages for part in parts(run.config, stage)]
    gone = {name for part in redo for name in followers(part)}
    made = {part for part in wanted if part in gone or not run.done(part)}
    for part in AGAIN:
        if part in wanted and part not in made and other_inputs(run, part, made):
            made.add(part)
    return made


def check_stages(run: Run, stages: Sequence[str], redo: Sequence[str]) -> None:
    """ConfigError where `redo` would remove what the command does not make again, or a stage is
    null that it names.
    """
    named = (
        [stage for stage in stages if not parts(run.config, stage)]
        if tuple(stages) != STAGES
        else []
    )
    if named:
        raise ConfigError(
            f"this config leaves out {named[0]} ({named[0]}: null); give it a section, at least "
            f"{{}}"
        )
    wanted = [part for stage in stages for part in parts(run.config, stage)]
    gone = {name for part in redo for name in followers(part) if (run.folder / name).exists()}
    if left := [name for name in INPUTS if name in gone and name not in wanted]:
        raise ConfigError(
            f"--redo {','.join(redo)} would remove {', '.join(left)} too, which this command does "
            "not make again; use rayward align with --redo, or name the stages with --stages"
        )


def check_made(run: Run, stages: Sequence[str], made: set[str]) -> None:
    """StageError where a part that the command does not make, and would, or reads, is of other
    settings or parts.
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
        if part not in AGAIN and (told := other_inputs(run, part, made)):
            raise StageError(
                f"{run.folder / part} was made of other parts of the run: {told}. Nothing was "
                "overwritten. Choose another folder with --run, or make it again, with all that "
                f"follows from it: rayward align CONFIG --redo {part}"
            )


def other_inputs(run: Run, part: str, made: set[str]) -> str:
    """In what way the parts that a finished one was made of are others now; "" where they are the
    same. `made`: those that the command makes."""
    then: dict[str, str] = run.manifest(part)["settings"].get("inputs", {})
    now = inputs(run.config, part)
    if part == "evaluate":  # the models that are there
        now = tuple(name for name in now if name in then or run.done(name) or name in made)
    elif part == "publish":  # one of them
        now = tuple(name for name in now if name in then)
    told = [f"{name} was none of them" for name in now if name not in then]
    told += [
        f"{name} is none of them now"
        for name in then
        if name not in (*now, *NOT_READ.get(part, ()))
    ]
    for name in now:
        if name in then and (name in made or run.manifest(name)["fingerprint"] != then[name]):
            told.append(f"{name} is made anew")
    return "; ".join(told)


def check_replay(run: Run, replay: Path, redo: Sequence[str]) -> None:
    """Raise ConfigError where the command would empty the folder of the rollouts before it reads
    them, StageError where they are too few."""
    from rayward.pipelines.rl.responses import replay_files

    for name in {*parts(run.config, "rl"), *(name for part in redo for name in followers(part))}:
        if replay.resolve().is_relative_to((run.folder / name).resolve()):
            raise ConfigError(
                f"--replay {replay} lies in {name}, which this command makes anew; move it "
                "elsewhere first"
            )
    replay_files(replay, run.config)


def check_files(run: Run, made: set[str]) -> None:
    """StageError for files of data that are not there, where prepare is still to read them."""
    if "prepare" not in made:
        return
    data = run.config.data
    lost = [
        f"data.{name}.{number}.path: {path}: no such file or folder"
        for name in lists_read(run.config)
        for number, source in enumerate(getattr(data, name))
        if not source.path.startswith("hf:")
        and not (path := Path(data.root) / source.path).exists()
    ]
    if lost:
        raise StageError("\n".join([*lost, f"data.root is {Path(data.root).resolve()}"]))


def check_functions(config: Config) -> None:
    """Import the functions of scoring.sources now: SourceDataError for one that is not there."""
    from rayward.actors.scoring.sources import function_source

    for source in config.scoring.sources:
        if source.kind == "function":
            function_source(source, str(Path(config.scoring.functions).resolve()))


def check_names(config: Config) -> None:
    """Raise ConfigError with the nearest name for each chat template or data format that does not
    exist.
    """
    from rayward.data.formats.registry import FORMATS
    from rayward.data.templates.template import TEMPLATES

    asked = [("model.template", config.model.template, tuple(TEMPLATES))]
    for name in LISTS:
        for number, source in enumerate(getattr(config.data, name)):
            asked.append((f"data.{name}.{number}.format", source.format, ("auto", *FORMATS)))
    wrong = [(field, name, known) for field, name, known in asked if name not in known]
    if wrong:
        told = [
            f"{field} is {name!r}, which is unknown; {_near(name, known)}"
            for field, name, known in wrong
        ]
        raise ConfigError("\n".join(told))


def check_models(run: Run, made: set[str], fetched: bool = True) -> None:
    """StageError with all that is wrong with the models that are named for the parts that are to be
    made.

    Where they are not `fetched`, hub names that the cache lacks are not looked at.
    """
    # The same model is named for many stages.
    asked = {
        (named.setting, named.model, named.scores, named.with_tokenizer): named
        for named in named_models(run.config)
        if made & set(parts(run.config, named.stage))
    }
    told: dict[str, None] = {}
    for named in asked.values():
        told |= dict.fromkeys(_wrong(named, run.config.model.context_tokens, fetched))
    if not told and run.config.model.path and "prepare" in made:
        told = dict.fromkeys(
            _wrong_words(run.config.model.path, run.config.model.template, fetched)
        )
    if told:
        raise StageError("\n".join(told))


def check_tokens(run: Run, made: set[str]) -> None:
    """StageError where a model of a later part cannot read what this run's prepare stage has made:
    now, not when hours of other stages are done."""
    from rayward.pipelines.rows.renderer import Renderer
    from rayward.pipelines.scoring.reward_folder import (
        check_same_tokens,
        own_renderer,
        reads_ids_of,
    )
    from rayward.pipelines.scoring.scorer import check_only

    config, renderer = run.config, Renderer.of_run(run)
    for named in named_models(config):
        if not made & set(parts(config, named.stage)) or named.setting in (
            "model.path",
            "reward.path",
        ):
            continue
        folder = Path(local(named.model))
        if named.setting.startswith("evaluate.models"):
            check_same_tokens(folder, renderer, named.setting, "evaluate it in a run of its own")
        elif named.setting != "rl.critic" and not reads_ids_of(folder, renderer, named.setting):
            own_renderer(folder, named.setting)
    learn = [name for name in WITH_CRITIC if f"rl/{name}" in made]
    if learn and critic_start(config) not in CRITICS:
        check_same_tokens(
            local(critic_start(config)),
            renderer,
            "where the critic starts",
            "set rl.critic: policy",
        )
    if made & {part for stage in ("sample", "rl", "evaluate") for part in parts(config, stage)}:
        check_only(run)


def _wrong(named: NamedModel, context_tokens: int, fetched: bool) -> Iterator[str]:
    try:
        folder = Path(local(named.model))
    except ValueError as error:
        if fetched:
            yield f"{named.setting}: {error}"
        return
    found = faults(
        folder, named.scores, named.with_tokenizer, 0 if named.scores else context_tokens
    )
    if found and not (folder / "config.json").is_file() and not is_hub_name(named.model):
        yield f"{named.setting} {named.model}: {found[0]}; {_instead(named)}"
    else:
        yield from (f"{named.setting}: {told}" for told in found)


def _wrong_words(model: str, template: str, fetched: bool) -> Iterator[str]:
    """Why prepare could not train from the chat template with the tokenizer of a model."""
    from rayward.data.templates.template import find, stop_token_ids
    from rayward.data.templates.tokenizer import tokenizer_of

    try:
        folder = local(model)
    except ValueError:
        if fetched:
            raise
        return
    try:
        stop_token_ids(find(template), tokenizer_of(folder)[0])
    except ValueError as error:
        yield f"model.path {model}, model.template {template}: {error}"


def _instead(named: NamedModel) -> str:
    """What may have been meant by something that is no folder."""
    if "://" in named.model and named.setting == "evaluate.judge":
        return (
            "a judge behind HTTP is a source of reward: evaluate.judge: scoring, and in "
            "scoring.sources {kind: judge, target: NAME@http://HOST/v1}"
        )
    if difflib.get_close_matches(named.model, named.known, n=1, cutoff=0.6):
        return _near(named.model, named.known)
    words = f"{', '.join(named.known)}, or " if named.known else ""
    return f"it takes {words}a model's folder, or a hub name {FORM}"


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
