"""What a part of a run takes from outside of its folder and config: files of functions, folders of
models, prompts.

Their digests stand in the part's manifest, so that a part is not taken for done where one has
changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayward.configs.named import named_models
from rayward.configs.plan import asks_reward
from rayward.configs.schema import Config
from rayward.configs.sections.suites import EvaluationSuite
from rayward.configs.stages import START, compared, has
from rayward.data import rules
from rayward.data.formats.files.containers import data_files
from rayward.data.judging.suites import SUITES, question_file
from rayward.data.model_files.hub_models import local

OURS = Path(rules.__file__).parent

EDGE = 1 << 20
"""Bytes at each end of a file of weights that its digest is of: training changes all of them."""


def digests(config: Config, part: str) -> dict[str, str]:
    """A digest of each thing that is given to a part, by its name; none of what is not there."""
    if part.startswith("evaluate/"):
        return _of_suite(config, part)
    stage = part.split("/")[0]
    contents = {
        f"{named.setting} {named.model}": model_digest(Path(local(named.model)))
        for named in named_models(config)
        if named.stage == stage and _is_here(named.model)
    }
    if stage in ("sample", "rl") or (stage == "evaluate" and asks_reward(config)):
        contents |= dict(_sources(config))
    if stage == "evaluate":
        contents |= _of_files({"evaluate.labelled": labelled_file(config)})
    # Such an evaluation reports rewards beside its judge's scores, but the sources are among its
    # settings with the judge "scoring" only.
    if stage == "evaluate" and asks_reward(config) and config.evaluate.judge != "scoring":
        settings = [source.model_dump(mode="json") for source in config.scoring.sources]
        contents["scoring.sources"] = _short(json.dumps(settings, sort_keys=True).encode())
    return contents


def _of_suite(config: Config, part: str) -> dict[str, str]:
    """The digests of what a suite of evaluate takes: files, and the models that are given."""
    suite = next(suite for suite in config.evaluate.suites if suite.part == part)
    files: dict[str, str | Path | None] = {
        "baseline": baseline_file(config, suite),
        "evaluate.labelled": labelled_file(config),
    }
    # One without its questions is told before anything starts.
    with contextlib.suppress(ValueError):
        files["suite"] = question_path(config, suite)
    models = {"judge": suite.judge} | {
        f"evaluate.models.{name}": path for name, path in config.evaluate.models.items()
    }
    if START in compared(config) and config.model.path:
        models["model.path"] = config.model.path
    code = {}
    if re.fullmatch(r"[\w.]+:\w+", suite.judge):
        path = module_file(suite.judge.partition(":")[0], str(Path.cwd()))
        code = _of_files({f"function {suite.judge}": path})
    return (
        _of_files(files)
        | code
        | {
            name: model_digest(Path(local(model)))
            for name, model in models.items()
            if _is_here(model)
        }
    )


def files_judged(config: Config) -> Iterator[tuple[str, str]]:
    """Settings and paths of questions, answers and labelled pairs that evaluate reads; those
    without a root lie in data.root.
    """
    if not has(config, "evaluate"):
        return
    if config.evaluate.labelled is not None:
        yield "evaluate.labelled", config.evaluate.labelled
    for suite in config.evaluate.suites:
        setting = f"evaluate.suites {suite.name}"
        yield setting, suite.data or "" if suite.suite in SUITES else suite.suite
        if suite.baseline is not None and suite.baseline not in compared(config):
            yield setting, suite.baseline


def question_path(config: Config, suite: EvaluationSuite) -> str | Path:
    """The file of a suite's questions, or "hf:NAME". ValueError: its folder has none."""
    if suite.suite not in SUITES:
        return config.data.at(suite.suite)
    return question_file(suite.suite, Path(config.data.at(suite.data or "")))


def baseline_file(config: Config, suite: EvaluationSuite) -> Path | None:
    """The file of answers that a suite compares with; None where it is a model of the run."""
    if suite.baseline is None or suite.baseline in compared(config):
        return None
    return Path(config.data.at(suite.baseline))


def labelled_file(config: Config) -> str | None:
    """The file of pairs that the judges are measured on, or "hf:NAME", if any."""
    return config.data.at(config.evaluate.labelled) if config.evaluate.labelled else None


def _of_files(paths: Mapping[str, str | Path | None]) -> dict[str, str]:
    """A digest of each file, or folder of data files, that is there."""
    there = {name: Path(path) for name, path in paths.items() if path and Path(path).exists()}
    return {
        name: _short(b"\0".join(file.read_bytes() for file in data_files(path)))
        for name, path in there.items()
    }


def _is_here(model: str) -> bool:
    try:
        return (Path(local(model)) / "config.json").is_file()
    except ValueError:  # a hub name that has not been fetched yet
        return False


def _sources(config: Config) -> Iterator[tuple[str, str]]:
    folder = str(Path(config.scoring.functions).resolve())
    for source in config.scoring.sources:
        if source.kind == "function" and source.target:
            path = module_file(source.modules[0], folder)
            # Ours are no file that somebody gives: they change with the version.
            if path is not None and not path.is_relative_to(OURS):
                yield f"function {source.target}", _short(path.read_bytes())
        if source.prompts and Path(source.prompts).is_dir():
            texts = [path.read_bytes() for path in sorted(Path(source.prompts).glob("*.txt"))]
            yield f"prompts {source.prompts}", _short(b"\0".join(texts))


def module_file(name: str, folder: str) -> Path | None:
    """The file of a module that is found in `folder` or installed."""
    before = list(sys.path)
    sys.path.append(folder)  # at the end, as `function_source` does, which imports it
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    finally:
        sys.path[:] = before
    origin = spec.origin if spec else None
    return Path(origin) if origin and Path(origin).is_file() else None


def model_digest(folder: Path) -> str:
    """Of its config, its tokenizer, and the sizes and ends of its weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            # Not all of the gigabytes: this runs at each begin of each stage, and at a dry run.
            size = path.stat().st_size
            with path.open("rb") as file:
                ends = file.read(EDGE)
                file.seek(max(0, size - EDGE))
                ends += file.read(EDGE)
            digest.update(f"{path.name} {size} ".encode() + ends)
        elif path.name in (
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
        ):
            digest.update(f"{path.name} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def changed(before: dict[str, Any], current: dict[str, str]) -> list[str]:
    """What is given now as it was given then, by name, with other contents."""
    # What has no digest from then was not there, or its version took none: it is no change.
    return [name for name, digest in current.items() if name in before and before[name] != digest]
