"""Stage sample: rejection sampling. Draw n answers a prompt, keep the best, fine-tune SFT on those.

The samples come from the SFT model and so does the start of the fine-tuning (as in Llama 2,
arXiv:2307.09288): whoever answered is taught by their own best answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from rayward.actors.group import running
from rayward.actors.rollout_group import RolloutGroup
from rayward.algorithms.winrate import best_of_n_kl
from rayward.cluster.connect import connect
from rayward.cluster.placement import Placement
from rayward.configs.plan import inputs, roles
from rayward.configs.schema import Config
from rayward.data.records import Conversation, Prompt, Turn
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.prompts import fit_prompts
from rayward.pipelines.rows.records import prepared, subset
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics, table
from rayward.pipelines.run.stage import Stage, begin
from rayward.pipelines.scoring.scorer import Scorer
from rayward.pipelines.training.fine_tuning import fine_tune, rows_of

PROMPTS_PER_BATCH = 64
FEW_FINISHED = 0.5
"""A smaller share of answers that ended by themselves is warned of."""


def rejection_sample(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "sample", inputs(config, "sample"))
    if stage is None:
        return None
    connect(config.cluster)
    renderer = Renderer.of_run(run)
    prompts = subset(prepared(run, "prompts"), config.sample.prompts, config.seed)
    rows = draw(stage, prompts, renderer)
    write_jsonl(stage.folder / "samples.jsonl", rows)
    kept = [row for row in rows if row["kept"]]
    for warning in (few_finished(rows, config), worse_than_the_mean(rows)):
        if warning:
            print(warning)
    if not kept:
        raise StageError(
            "no prompt has two different answers of which the best ended by itself "
            f"({finished_share(rows):.1%} of all answers did); raise rollout.max_new_tokens or "
            "sample.temperature"
        )
    metrics = summary(rows, kept)
    best, left_out = rows_of(best_conversations(prompts, kept), renderer)
    metrics |= fine_tune(stage, run.first, best, config.sample.training, "sample", left_out)
    table("rejection sampling", metrics)
    return stage.finish(metrics)


def draw(stage: Stage, prompts: list[Prompt], renderer: Renderer) -> list[dict[str, Any]]:
    """One row a prompt: its answers with scores, and the best. Stops its actors at the end."""
    config = stage.run.config
    sample = config.sample
    longest = config.rollout.max_new_tokens
    prompts, ids = fit_prompts(prompts, renderer, longest, Counter(), repeated=True)
    rows: list[dict[str, Any]] = []
    warned = False
    batches = range(0, len(prompts), PROMPTS_PER_BATCH)
    # Those of a try before; a part of its own each, since drawing may take days.
    names = [f"draw-{number:05d}" for number in range(len(batches))]
    first = next((number for number, name in enumerate(names) if not stage.kept(name)), len(names))
    kept = [stage.part(name, list) for name in names[:first]]
    if kept:
        print(f"   sample: {first} of {len(names)} batches are drawn already", flush=True)
        rows = [row for batch_rows in kept for row in batch_rows]
    if first == len(names):
        return rows
    figures = [{"step": number, **batch_figures(kept[number])} for number in range(first)]
    # Training comes after these actors are gone, and has places of its own.
    table = {name: role for name, role in roles(config, "sample").items() if name != "train"}
    with (
        Placement(table, config.cluster, config) as placement,
        _actors(stage, renderer, placement) as (rollout, reward),
        Metrics(stage.folder / "draw", "draw", len(batches), "batch", figures) as metrics,
    ):
        for number, start in list(enumerate(batches))[first:]:
            # In batches for the bar and the warning; a seed of each, so that all batches differ.
            batch = np.arange(start, min(start + PROMPTS_PER_BATCH, len(prompts)))
            rollouts = rollout.generate(
                ids.take(batch),
                sample.samples_per_prompt,
                (config.seed, "sample", number),
                renderer.stop_token_ids,
                sample.temperature,
                config.rollout.max_new_tokens,
            )
            batch_prompts = [prompts[i] for i in batch]
            scored = rollouts.with_columns(scores=reward.score(rollouts, batch_prompts))
            picked = pick_best(scored, batch_prompts, renderer, sample.samples_per_prompt)
            batch_rows = stage.part(names[number], partial(list, picked))
            rows += batch_rows
            shown = ("mean_score", "best_score", "finished_share")
            metrics.log(number, batch_figures(batch_rows), shown)
            # While it draws, since that may take hours; tqdm.write keeps the bar whole.
            if not warned and (warning := few_finished(rows, config)):
                tqdm.write(warning)
                warned = True
    return rows


@contextmanager
def _actors(
    stage: Stage, renderer: Renderer, placement: Placement
) -> Iterator[tuple[RolloutGroup, Scorer]]:
    run, config = stage.run, stage.run.config
    engines = placement.seats("rollout")
    rollout = RolloutGroup(run.first, config, config.resources.policy, seats=engines)
    reward = Scorer(run, renderer, placement)
    with running(rollout, *reward.groups):
        yield rollout, reward


def batch_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean score of all answers and of those kept, if any; the share that ended by themselves."""
    best = [row["score"] for row in rows if row["kept"]]
    figures = {
        "mean_score": float(np.mean([row["scores"] for row in rows])),
        "finished_share": finished_share(rows),
    }
    return figures | ({"best_score": float(np.mean(best))} if best else {})


def finished_share(rows: list[dict[str, Any]]) -> float:
    """The share of all answers that ended by themselves."""
    return float(np.mean([row["finished"] / len(row["scores"]) for row in rows]))


def few_finished(rows: list[dict[str, Any]], config: Config) -> str:
    """A warning where less than half of the answers ended; "" elsewhere."""
    share, answers = finished_share(rows), sum(len(row["scores"]) for row in rows)
    if share >= FEW_FINISHED:
        return ""
    none = sum(not row["finished"] for row in rows)
    return (
        f"sample: only {share:.1%} of {answers} answers ended by themselves within "
        f"rollout.max_new_tokens {config.rollout.max_new_tokens}, and no other is kept, so {none} "
        f"of {len(rows)} prompts have nothing to keep and the rest little to choose from: raise "
        f"rollout.max_new_tokens, lower sample.temperature ({config.sample.temperature:g}), or "
        f"train longer on answers that end (sft.epochs {config.sft.epochs})"
    )


def worse_than_the_mean(rows: list[dict[str, Any]]) -> str:
    """A warning where the answers that are kept score below the mean of all; "" elsewhere."""
    best = [row["score"] for row in rows if row["kept"]]
    every = [score for row in rows for score in row["scores"]]
    if not best or np.mean(best) >= np.mean(every):
        return ""
    return (
        f"sample: the best answers that are kept score {np.mean(best):.3g} on average, below the "
        f"mean of all answers ({np.mean(every):.3g}), since answers that were cut score higher: "
        "learning from them may make the model worse; draw answers that end "
        "(rollout.max_new_tokens, sample.temperature, sft.epochs)"
    )


def pick_best(
    rollouts: Rollouts, prompts: list[Prompt], renderer: Renderer, n: int
) -> Iterator[dict[str, Any]]:
    """For each prompt the answer with the highest score (the first of those equal to five digits,
    as they are told) among those that ended by themselves.

    A prompt is not kept where no answer ended, or where all its scores are equal: it teaches
    nothing.
    """
    assert rollouts.scores is not None
    # The n answers of a prompt stand one after another.
    for row, prompt in enumerate(prompts):
        scores = rollouts.scores[row * n : (row + 1) * n]
        finished = rollouts.finished[row * n : (row + 1) * n]
        # As the file says them, so that the choice follows from the file: scores that differ by
        # rounding only are equal.
        rounded = [round(float(score), 5) for score in scores]
        # An answer that was cut is never the best: fine-tuning would put an end token where it was
        # cut, and teach to stop there.
        best = int(np.argmax(np.where(finished, rounded, -np.inf)))
        answers = [renderer.answer(rollouts.responses[row * n + i]) for i in range(n)]
        yield {
            "prompt_id": prompt.id,
            "prompt": [turn.content for turn in prompt.turns],
            "response": answers[best],
            "score": float(scores[best]),
            "scores": rounded,
            "k_index": best,
            "finished": int(finished.sum()),
            "ended": finished.tolist(),
            "distinct": len(set(answers)),
            "answers": answers,
            "kept": bool(finished.any() and answers[best] and scores.max() > scores.min()),
        }


def best_conversations(prompts: list[Prompt], kept: list[dict[str, Any]]) -> Iterator[Conversation]:
    """The kept answers as conversations to learn from."""
    by_id = {prompt.id: prompt for prompt in prompts}
    for row in kept:
        prompt = by_id[row["prompt_id"]]
        turns = (*prompt.turns, Turn("assistant", row["response"]))
        yield Conversation(turns, "rejection", prompt.id, tools=prompt.tools)


def summary(rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> dict[str, Any]:
    """What the draw gave."""
    scores = np.concatenate([row["scores"] for row in rows])
    n = len(rows[0]["scores"])
    lengths = [len(answer) for row in rows for answer in row["answers"]]
    return {
        "prompts": len(rows),
        "samples_per_prompt": n,
        "kept_prompts": len(kept),
        "mean_score": float(scores.mean()),
        "best_score": float(np.mean([row["score"] for row in kept])),
        "distinct_share": float(np.mean([row["distinct"] / n for row in rows])),
        "finished_share": finished_share(rows),
        "mean_characters": float(np.mean(lengths)),
        "best_characters": float(np.mean([len(row["response"]) for row in kept])),
        "kl_bound": best_of_n_kl(n),
    }
