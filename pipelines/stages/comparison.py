"""Answers of several models to the same prompts, compared: win rates and differences.

Intervals are of the bootstrap over prompts. All models answer the same ones, so a resample takes a
prompt with the answers of both, and how hard a prompt is cancels out. They cover the choice of the
prompts, not that of the sampled answers, nor of the training's seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayward.algorithms.diversity import distinct_n, mtld
from rayward.algorithms.winrate import bootstrap_interval, outcomes
from rayward.pipelines.report.judge_words import in_words
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.metrics import table

Answers = dict[str, list[dict[str, Any]]]
"""By model, one row a prompt, in the order of the prompts."""


def judged_by_all(answers: Answers) -> Answers:
    """Rows of the prompts for which every answer has a judge's score. StageError for none."""
    # One model's missing score takes the prompt from all: means of different prompts would not be
    # comparable.
    scored = [
        all(row["judge"] is not None for row in rows)
        for rows in zip(*answers.values(), strict=True)
    ]
    if not any(scored):
        raise StageError("evaluate: the judge has no score for the answers to any prompt")
    return {
        name: [row for row, kept in zip(rows, scored, strict=True) if kept]
        for name, rows in answers.items()
    }


def win_rate(
    candidate: NDArray[np.float64], baseline: NDArray[np.float64], resamples: int, seed: int
) -> dict[str, float]:
    """Share of prompts on which the candidate's answer is judged better, with its 95 % interval.

    Both are scores by prompt, [N], higher is better; a tie counts half.
    """
    won = outcomes(candidate, baseline)
    low, high = bootstrap_interval(won, resamples, seed)
    return {"mean": float(np.mean(won)), "low": float(low), "high": float(high), "n": len(won)}


def differences(
    answers: Answers,
    judged: dict[str, NDArray[np.float64]],
    name: str,
    against: str,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Mean of what a model's answer scores more than the other's, with its 95 % interval.

    By the judge, and by the reward that RL and sampling learn from, over the prompts for which it
    has a number for both.
    """
    by_measure = {"judge": judged[name] - judged[against]}
    pairs = zip(answers[name], answers[against], strict=True)
    rewards = [(ours["reward"], other["reward"]) for ours, other in pairs]
    known = [ours - other for ours, other in rewards if ours is not None and other is not None]
    if known:
        by_measure["reward"] = np.array(known)
    intervals = {}
    for measure, values in by_measure.items():
        low, high = bootstrap_interval(values, resamples, seed)
        # `n` of the reward may be smaller than that of the judge.
        intervals[measure] = {
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "n": len(values),
        }
    return intervals


def by_reward(
    answers: Answers,
    judged: dict[str, NDArray[np.float64]],
    name: str,
    against: str,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """The reward that was learned from as the judge, over the prompts for which it has a number for
    both: `win_rate`, and `agrees`, on which share of them it prefers the answer that the judge
    does, with its 95 % interval. Ties of one of the two count half, of both as agreement. None
    where it has no number.
    """
    pairs = list(zip(answers[name], answers[against], strict=True))
    known = [
        row
        for row, (ours, other) in enumerate(pairs)
        if ours["reward"] is not None and other["reward"] is not None
    ]
    if not known:
        return None
    ours, other = (np.array([pairs[row][side]["reward"] for row in known]) for side in (0, 1))
    by_judge = np.sign(judged[name][known] - judged[against][known])
    agree = 1.0 - np.abs(np.sign(ours - other) - by_judge) / 2
    low, high = bootstrap_interval(agree, resamples, seed)
    share = {"mean": float(agree.mean()), "low": low, "high": high, "n": len(known)}
    return {"win_rate": win_rate(ours, other, resamples, seed), "agrees": share}


def diversity(texts: list[str]) -> dict[str, float]:
    """Lexical diversity of a model's answers: distinct-2 of all together, over words, which grows
    as there is less text; MTLD of the answers one after the other.
    """
    return {
        "distinct_2": distinct_n([text.split() for text in texts], 2),
        "mtld": mtld(" ".join(texts)),
    }


def model_figures(rows: list[dict[str, Any]], judged: NDArray[np.float64]) -> dict[str, float]:
    """Means of a model's answers; KL is a sum over the tokens of an answer, in nats."""
    return {
        "judge_mean": float(judged.mean()),
        "kl": float(np.mean([row["kl"] for row in rows])),
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "finished": float(np.mean([row["finished"] for row in rows])),
        "mismatch_max": largest_mismatch(rows),
        **diversity([row["answer"] for row in rows]),
    }


def largest_mismatch(rows: list[dict[str, Any]]) -> float:
    """Largest gap between engine and trainer log-probs of a token, in nats."""
    return max(row["mismatch"] for row in rows if row["mismatch"] is not None)


def show(metrics: dict[str, Any], against: str) -> None:
    """Print the tables of an evaluation."""
    other = "SFT" if against == "sft" else against
    rows = []
    for name, figures in metrics["models"].items():
        rate = metrics["win_rate"].get(name)
        percent = f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]" if rate else "-"
        finished = f"{figures['finished']:.1%}"
        row = (name, percent, figures["judge_mean"], figures["kl"], figures["tokens"], finished)
        rows.append(row)
    table(
        f"win rate against {other}, judge: {metrics['judge']}, {metrics['prompts']} held-out "
        "prompts",
        rows,
        ("model", "win rate [95 %]", "judge", f"KL to {other}", "tokens", "finished"),
    )
    print(f"judge: {in_words(metrics['judge_agreement'])}")

    def interval(values: dict[str, float] | None) -> str:
        if not values:
            return "-"
        return f"{values['mean']:+.3f} [{values['low']:+.3f}, {values['high']:+.3f}]"

    table(
        f"what an answer scores more than that of {other} to the same prompt, mean [95 %]",
        [
            (name, interval(measures.get("reward")), interval(measures["judge"]))
            for name, measures in metrics["difference"].items()
        ],
        ("model", "by the reward that is learned from", f"by the judge ({metrics['judge']})"),
    )
