"""How far the judge of an evaluation can be trusted: on labelled pairs, before it judges.

The pairs are those of evaluate.labelled, or of the rankings that prepare held out: the reward
models that this run makes have not learned from these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rayward.configs.sections.suites import EvaluationSuite
from rayward.data.judging.labels import LabelledPair, pairs_of_ranking
from rayward.data.records import Prompt
from rayward.pipelines.judging.agreement import drawn, labelled_only, read_pairs
from rayward.pipelines.judging.statistics.labelled_pairs import FIRST, SECOND, write_pairs
from rayward.pipelines.judging.statistics.measures import (
    by_scores,
    is_no_better_than_length,
    measure,
)
from rayward.pipelines.judging.suite_commands import called, judge_command
from rayward.pipelines.report.judge_words import in_words
from rayward.pipelines.rows.left_out import LeftOut
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.given import labelled_file

HELD_OUT = "held-out rankings"
Scores = Callable[[list[Prompt], list[str]], np.ndarray]
"""Of whole answers, one to each prompt; NaN for none."""


def judge_figures(run: Run, scores: Scores) -> dict[str, Any]:
    """The figures of the longer answer and of the judge on labelled pairs, and what they are of.

    Without pairs {"not_measured": why}. StageError where evaluate.labelled holds none.
    """
    config, left_out = run.config, LeftOut()
    pairs = _pairs(run, left_out)
    if isinstance(pairs, str):
        return {"not_measured": pairs}
    answers = [text for pair in pairs for text in (pair.first, pair.second)]
    prompts = [
        Prompt(pair.asked(), pair.source, pair.id) for pair in pairs for _ in ("first", "second")
    ]
    both = np.asarray(scores(prompts, answers), dtype=np.float64).reshape(-1, 2)
    by_pair = [(float(first), float(second)) for first, second in both]
    judges = by_scores(config.evaluate.judge, pairs, by_pair, config.seed)
    return _figures(run, pairs, judges, left_out)


def trust_of_suite(run: Run, suite: EvaluationSuite, judge: str, folder: Path) -> dict[str, Any]:
    """The same of a suite's judge, which is asked as it is about the suite's answers; its verdicts
    stay in `folder`.
    """
    left_out = LeftOut()
    pairs = _pairs(run, left_out)
    if isinstance(pairs, str):
        return {"not_measured": pairs}
    # The commands take a question, not the turns before it: as one text it would be another one.
    longer = [pair for pair in pairs if len(pair.asked()) > 1]
    pairs = [pair for pair in pairs if len(pair.asked()) == 1]
    if longer:
        left_out["several turns"] += len(longer)
    if not pairs:
        return {"not_measured": f"all {len(longer)} labelled pairs have several turns"}
    write_pairs(folder, pairs)
    files = [str(folder / f"{name}.jsonl") for name in (SECOND, FIRST)]
    out = folder / "judged"
    called(suite, judge_command(run, suite, judge, files, folder / "question.jsonl", out))
    judges = measure(pairs, [str(out / "verdicts.jsonl")], [], run.config.seed, left_out)
    return _figures(run, pairs, judges, left_out)


def _figures(
    run: Run, pairs: list[LabelledPair], judges: list[dict[str, Any]], left_out: LeftOut
) -> dict[str, Any]:
    if not judges[1]["n"]:
        return {"not_measured": f"the judge says nothing of {len(pairs)} labelled pairs"}
    return {
        "labels": run.config.evaluate.labelled or HELD_OUT,
        "pairs": len(pairs),
        "prompts": len({pair.group for pair in pairs}),
        "left_out": dict(left_out),
        "judges": judges,
        "no_better_than_length": is_no_better_than_length(judges[1]),
    }


def _pairs(run: Run, left_out: LeftOut) -> list[LabelledPair] | str:
    """The labelled pairs, evaluate.labelled_pairs at most, or why there are none."""
    config = run.config
    if not config.evaluate.labelled_pairs:
        return "evaluate.labelled_pairs is 0"
    pairs = _labelled(run, left_out)
    if not pairs:
        return "prepare held out no ranking; evaluate.labelled may name a file"
    return drawn(pairs, min(config.evaluate.labelled_pairs, len(pairs)), config.seed)


def _labelled(run: Run, left_out: LeftOut) -> list[LabelledPair]:
    seed = run.config.seed
    path = labelled_file(run.config)
    if path is None:
        if not (run.folder / "prepare" / "heldout.jsonl").is_file():
            return []
        return [
            pair
            for number, ranking in enumerate(prepared(run, "heldout"))
            for pair in pairs_of_ranking(ranking, f"heldout-{number}", seed)
        ]
    try:
        pairs = labelled_only(read_pairs([path], seed, left_out), left_out)
    except (ValueError, OSError) as error:
        raise StageError(f"evaluate.labelled: {error}") from error
    for row in left_out.rows[:1]:
        print(
            f"evaluate.labelled: {sum(left_out.values())} left out, first "
            "{where}: {reason}: found {found}, expected {expected}".format(**row)
        )
    if not pairs:
        raise StageError(f"evaluate.labelled {path}: no pair of which most labellers prefer one")
    return pairs


def warn(trust: dict[str, Any]) -> None:
    """Say before the judge judges that it is not worth much, or that nobody knows."""
    if trust.get("no_better_than_length", True):
        print(f"   the judge before it judges: {in_words(trust)}", flush=True)
