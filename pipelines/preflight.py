"""What must be so before a command removes or starts anything; a dry run looks at the same.

A run takes hours, and a mistake that shows in its last stage has cost all of them. So whatever can
be known from the config, the folder and the files is looked at first, and all that is wrong with
names, files and models is told at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rayward.configs.decisive import decisive
from rayward.configs.load import ConfigError
from rayward.configs.named import CRITICS, NamedModel, named_models
from rayward.configs.needs import lists_read
from rayward.configs.plan import critic_start, followers
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import WITH_CRITIC
from rayward.configs.sections.data import LISTS, OWN_EVALUATION
from rayward.configs.stages import parts, suite_parts
from rayward.data.model_files.folder import faults
from rayward.data.model_files.hub_models import FORM, is_hub_name, local
from rayward.pipelines.parts import check_made, check_stages, to_make
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.given import labelled_file


@contextmanager
def _told_before() -> Iterator[None]:
    """Whatever is wrong before anything began is the user's to mend, and no fault of a stage."""
    try:
        yield
    except (StageError, OSError) as error:
        raise ConfigError(str(error)) from error


@_told_before()
def preflight(
    run: Run,
    stages: Sequence[str],
    redo: Sequence[str] = (),
    keep: bool = False,
    replay: Path | None = None,
) -> set[str]:
    """The parts that the command makes. Models are looked at by `check_models`.

    ConfigError where the command line does not fit the config, or names something that does not
    exist; where the folder holds what was made otherwise; where rows and functions are not there.
    """
    # Cheap checks first, and names before all: the others would fail on them with worse words.
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
    check_labelled(run.config, made)
    check_suites(run, stages, made)
    if any(parts(run.config, stage) for stage in stages if stage in ("sample", "rl", "evaluate")):
        check_functions(run.config)
    return made


def check_replay(run: Run, replay: Path, redo: Sequence[str]) -> None:
    """ConfigError where the command empties the rollouts' folder, StageError where they are few."""
    # Brings in torch, which a plan without a replay does without.
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
    missing = []
    for name in lists_read(run.config):
        for number, source in enumerate(getattr(data, name)):
            path = data.at(source.path)
            if not path.startswith("hf:") and not Path(path).exists():
                missing.append(f"data.{name}.{number}.path: {path}: no such file or folder")
    for name in data.decontaminate.against if data.decontaminate else ():
        path = data.at(name)
        if name != OWN_EVALUATION and not path.startswith("hf:") and not Path(path).exists():
            missing.append(f"data.decontaminate.against: {path}: no such file or folder")
    if missing:
        raise StageError("\n".join([*missing, f"data.root is {Path(data.root).resolve()}"]))


def check_labelled(config: Config, made: set[str]) -> None:
    """StageError where evaluate is still to read labelled pairs from a file that is not there."""
    path = labelled_file(config)
    reads = any(part.startswith("evaluate") for part in made)
    if path is None or not reads or path.startswith("hf:"):
        return
    if not Path(path).exists():
        raise StageError(f"evaluate.labelled: {path}: no such file or folder")
    from rayward.pipelines.judging.agreement import read_pairs
    from rayward.pipelines.rows.left_out import LeftOut

    try:
        read_pairs([path], 0, LeftOut())
    except ValueError as error:
        raise StageError(f"evaluate.labelled: {error}") from error


def check_suites(run: Run, stages: Sequence[str], made: set[str]) -> None:
    """StageError where a suite that is kept is of other settings, or one to make cannot begin."""
    # Reads the options of commands, which a run without suites does without.
    from rayward.pipelines.judging.suite_check import check

    for suite in run.config.evaluate.suites if "evaluate" in stages else ():
        if suite.part in made:
            check(run, suite)
        elif suite.part in suite_parts(run.config) and run.state(suite.part) != "done":
            raise run.conflict(suite.part, decisive(run.config, suite.part))


def check_functions(config: Config) -> None:
    """Import the functions of scoring.sources now: SourceDataError for one that is not there."""
    from rayward.actors.scoring.sources import function_source

    for source in config.scoring.sources:
        if source.kind == "function":
            function_source(source, str(Path(config.scoring.functions).resolve()))


def check_names(config: Config) -> None:
    """ConfigError with the nearest name for each chat template or data format that is unknown.

    Fields of a source that make no record are told, too.
    """
    from rayward.data.formats.known.formats import FORMATS
    from rayward.data.formats.mapped import FieldMap
    from rayward.data.templates.template import TEMPLATES

    # (setting, its value, the values that there are)
    names = [("model.template", config.model.template, tuple(TEMPLATES))]
    unmapped = []
    for name in LISTS:
        for number, source in enumerate(getattr(config.data, name)):
            names.append((f"data.{name}.{number}.format", source.format, ("auto", *FORMATS)))
            try:
                if not source.fields and not source.roles:
                    continue
                FieldMap(source.fields, source.roles)
                if source.format != "auto":
                    raise ValueError(f"fields are mapped: format {source.format} reads nothing")
            except ValueError as error:
                unmapped.append(f"data.{name}.{number}: {error}")
    wrong = [
        f"{setting} is {name!r}, which is unknown; {_near(name, known)}"
        for setting, name, known in names
        if name not in known
    ]
    if wrong or unmapped:
        raise ConfigError("\n".join([*wrong, *unmapped]))


@_told_before()
def check_models(run: Run, made: set[str], fetched: bool = True) -> None:
    """ConfigError with all that is wrong with the models that are named for the parts in `made`.

    Where they are not `fetched`, hub names that the cache lacks are not looked at.
    """
    # The same model is named for many stages, and reading one takes time.
    models = {
        (named.setting, named.model, named.scores, named.with_tokenizer): named
        for named in named_models(run.config)
        if made & set(parts(run.config, named.stage))
    }
    # Keys of a dict: each message once, in order.
    wrong: dict[str, None] = {}
    for named in models.values():
        try:
            wrong |= dict.fromkeys(_faults(named, run.config.model.context_tokens, fetched))
        except OSError as error:  # a name that is too long, a folder that nobody may read
            wrong[f"{named.setting} {named.model}: {error.strerror}"] = None
    # Only of a base model that can be read: its tokenizer is loaded.
    if not wrong and run.config.model.path and "prepare" in made:
        wrong = dict.fromkeys(
            _template_faults(run.config.model.path, run.config.model.template, fetched)
        )
    if wrong:
        raise StageError("\n".join(wrong))


def check_tokens(run: Run, made: set[str]) -> None:
    """StageError where a model of a later part cannot read what this run's prepare stage has made.

    It needs the tokenizer that prepare leaves, so it comes after that stage: the first moment.
    """
    from rayward.pipelines.rows.renderer import Renderer
    from rayward.pipelines.scoring.reward_folder import (
        check_same_tokens,
        own_renderer,
        reads_ids_of,
    )
    from rayward.pipelines.scoring.scorer import check_only

    config, renderer = run.config, Renderer.of_run(run)
    for named in named_models(config):
        # The run's tokenizer is that of model.path. Of reward.path only the ids count, at which
        # `check_vocabulary` looks where its training begins.
        if named.setting in ("model.path", "reward.path"):
            continue
        if not made & set(parts(config, named.stage)):
            continue
        folder = Path(local(named.model))
        if named.setting.startswith("evaluate.models"):
            check_same_tokens(folder, renderer, named.setting, "evaluate it in a run of its own")
        # A reward model with other ids reads text, for which it needs a tokenizer and a template.
        elif named.setting != "rl.critic" and not reads_ids_of(folder, renderer, named.setting):
            own_renderer(folder, named.setting)
    # A critic has a value for each token of the policy: text in other tokens is no way out. Its
    # folder may be that of a source of reward, which no setting of the critic names.
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


def _faults(named: NamedModel, context_tokens: int, fetched: bool) -> Iterator[str]:
    try:
        folder = Path(local(named.model))
    except ValueError as error:
        if fetched:
            yield f"{named.setting}: {error}"
        return
    # A reward model may read less than the context: what is longer it is not asked for.
    needed_tokens = 0 if named.scores else context_tokens
    wrong = faults(folder, named.scores, named.with_tokenizer, needed_tokens)
    if wrong and not (folder / "config.json").is_file() and not is_hub_name(named.model):
        yield f"{named.setting} {named.model}: {wrong[0]}; {_instead(named)}"
    else:
        yield from (f"{named.setting}: {fault}" for fault in wrong)


def _template_faults(model: str, template: str, fetched: bool) -> Iterator[str]:
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
