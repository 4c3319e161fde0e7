"""Figures of models from the files that commands write and from run folders, for one board.

What a file is, its fields say: rates of `judge winrate`, the summary of `judge pairwise`, means of
`judge scores`, the measures of `judge agreement`, results of lm-eval; a folder with summary.json is
a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayward.pipelines.judging.statistics.normal import NORMAL_95

Fields = Mapping[str, Any]
CONTROLLED = "length_controlled_winrate"


@dataclass(frozen=True)
class Figure:
    """A model's value in a suite, with its 95 % interval where there is one.

    `scale`: the ends of what it can be.
    """

    suite: str
    model: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    scale: tuple[float, float] = (0.0, 100.0)

    def __post_init__(self) -> None:
        if not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise TypeError(f"{self.suite} of {self.model} is {self.value!r}")


@dataclass
class Board:
    """Everything that the page shows. `trained`: of each run what was trained how."""

    figures: list[Figure] = field(default_factory=list)
    judges: list[dict[str, Any]] = field(default_factory=list)
    trained: dict[str, dict[str, str]] = field(default_factory=dict)


def read(paths: list[Path]) -> Board:
    """The figures of files and run folders. ValueError: one holds none, with what it has."""
    board = Board()
    for path in paths:
        before = len(board.figures) + len(board.judges)
        if path.is_dir():
            with _named(path):
                _add_run(board, path)
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: {error}; expected a JSON file of figures (judge winrate, scores or "
                "agreement --json, summary.json of judge pairwise) or a run folder"
            ) from None
        with _named(path):
            _add(board, value)
        if len(board.figures) + len(board.judges) == before:
            found = ", ".join(list(value)[:8]) if isinstance(value, dict) else "a list"
            raise ValueError(
                f"{path}: found {found or 'nothing'}, expected figures of judge winrate, pairwise, "
                "scores or agreement, or of lm-eval"
            )
    return board


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """ValueError with the file where it is of another shape than its fields say."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: its figures cannot be read: {why}") from error


def _add(board: Board, value: Any) -> None:
    if isinstance(value, list):
        for row in value:
            if isinstance(row, dict) and "win_rate" in row and "model" in row:
                board.figures += _win_rates(row)
        return
    if not isinstance(value, dict):
        return
    if "win_rate" in value and "model" in value:
        board.figures += _win_rates(value)
    for row in value.get("ratings") or ():
        board.figures += _ratings(row)
    labels = ", ".join(Path(name).name for name in value.get("labels") or ())
    board.judges += [{**row, "labels": labels} for row in value.get("judges") or ()]
    if isinstance(value.get("results"), dict):
        board.figures += _tasks(value)


def _win_rates(row: Fields) -> Iterator[Figure]:
    against = f"against {row.get('baseline') or '?'}, judged by {row.get('annotator') or '?'}"
    count = row.get("n_total", row.get("comparisons"))
    if row["win_rate"] is not None:
        name = f"win rate in % {against}"
        yield Figure(name, row["model"], row["win_rate"], row.get("low"), row.get("high"), count)
    if row.get(CONTROLLED) is not None:
        name = f"length-controlled win rate in % {against}"
        interval = (row.get("lc_low"), row.get("lc_high"))
        yield Figure(name, row["model"], row[CONTROLLED], *interval, count)


def _ratings(row: Fields) -> Iterator[Figure]:
    parts = [("mean", row)]
    if len(row.get("turns") or ()) > 1:
        parts += [(f"turn {turn}", of) for turn, of in row["turns"].items()]
    for name, of in parts:
        if of["mean"] is not None:
            suite = f"rating, {name}, judged by {row['judge']}"
            yield Figure(
                suite, row["model"], of["mean"], of["low"], of["high"], of["n"], (1.0, 10.0)
            )


def _tasks(value: Fields) -> Iterator[Figure]:
    """Results of lm-eval: each task's first metric with acc_norm before acc, in percent."""
    config = value.get("config") or {}
    model = value.get("model_name") or config.get("model_args") or config.get("model")
    counts = value.get("n-samples") or {}
    for task, of in value["results"].items():
        metrics: dict[str, str] = {}
        for name in of:
            if isinstance(of[name], int | float):
                # Of a metric with several filters the first, which is the strict one.
                metrics.setdefault(name.partition(",")[0], name)
        chosen = next((each for each in ("acc_norm", "acc", *metrics) if each in metrics), None)
        if chosen is None or "stderr" in chosen:
            continue
        mean = of[metrics[chosen]]
        error = of.get(metrics[chosen].replace(chosen, f"{chosen}_stderr", 1))
        spread = 100 * NORMAL_95 * error if isinstance(error, int | float) else None
        low, high = (None, None) if spread is None else (100 * mean - spread, 100 * mean + spread)
        count = (counts.get(task) or {}).get("effective")
        yield Figure(f"{task}, {chosen} in %", str(model), 100 * mean, low, high, count)


def _add_run(board: Board, folder: Path) -> None:
    """Win rates of a run's evaluation, and how its models were trained."""
    path = folder / "summary.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no summary.json in it; expected a run folder, or files")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "asked" in summary and "annotator" not in summary and not summary.get("models"):
        raise ValueError(f"{folder}: of judge answers, which holds no figures")
    if "annotator" in summary:  # of `judge pairwise`, whose folder was given
        _add(board, summary)
        return
    name = folder.resolve().name
    board.trained[name] = _trained(folder, summary)
    for suite, made in (summary.get("suites") or {}).items():
        _add_suite(board, name, suite, made)
    evaluation = summary.get("evaluate")
    if not isinstance(evaluation, dict):
        return
    trust = evaluation.get("judge_agreement") or {}
    labels = f"{name}: {trust.get('labels')}"
    board.judges += [{**row, "labels": labels} for row in trust.get("judges") or ()]
    against = evaluation.get("against", "sft")
    suite = f"win rate in % against {against}, judged by {evaluation.get('judge')}"
    for model, rate in (evaluation.get("win_rate") or {}).items():
        board.figures.append(_share(suite, f"{name}: {model}", rate))
    titles = {
        "win_rate": f"win rate in % against {against}, judged by the reward",
        "agrees": f"the reward prefers what the judge does ({evaluation.get('judge')}), in %",
    }
    for model, of in (evaluation.get("by_reward") or {}).items():
        board.figures += [
            _share(title, f"{name}: {model}", of[key]) for key, title in titles.items()
        ]
    for model, of in (evaluation.get("models") or {}).items():
        if "mtld" in of:
            title, scale = "MTLD of the answers", (0.0, 200.0)
            board.figures.append(
                Figure(title, f"{name}: {model}", of["mtld"], None, None, None, scale)
            )


def _add_suite(board: Board, run: str, suite: str, made: Fields) -> None:
    """A suite of a run: win rates or ratings of its models, and what its judge is worth."""
    if made["kind"] == "single":
        for name, row in made["models"].items():
            if row.get("average") is not None:
                title, model = f"{suite}: rating, judged by {made['judge']}", f"{run}: {name}"
                figure = Figure(title, model, row["average"], None, None, None, (1.0, 10.0))
                board.figures.append(figure)
        return
    title = f"{suite}: win rate in % against {made['baseline']}, judged by {made['judge']}"
    for model, of in made["models"].items():
        if of["win_rate"] is not None:
            values = (of["win_rate"], of["low"], of["high"], of["comparisons"])
            board.figures.append(Figure(title, f"{run}: {model}", *values))
    trust = made.get("judge_agreement") or {}
    labels = f"{run}, {suite}: {trust.get('labels')}"
    board.judges += [{**row, "labels": labels} for row in trust.get("judges") or ()]


def _share(suite: str, model: str, rate: Fields) -> Figure:
    value, low, high = (100 * rate[key] for key in ("mean", "low", "high"))
    return Figure(suite, model, value, low, high, rate.get("n"))


def _trained(folder: Path, summary: Fields) -> dict[str, str]:
    """In words: the base model, the stages that are done, the algorithms, the data."""
    others = ("seconds", "suites")
    stages = [name for name, of in summary.items() if isinstance(of, dict) and name not in others]
    told = {"stages": ", ".join(stages)}
    config = folder / "config.yaml"
    if config.is_file():
        import yaml

        try:
            given = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{config}: {error}") from None
        model = given.get("model") or {}
        told["base"] = str(model.get("path") or "from scratch")
        algorithms = (given.get("rl") or {}).get("algorithms") or ()
        told["algorithms"] = ", ".join(map(str, algorithms)) or "-"
        told["seed"] = str(given.get("seed", ""))
    if isinstance(summary.get("seconds"), dict) and "total" in summary["seconds"]:
        told["seconds"] = f"{summary['seconds']['total']:.0f}"
    return told
