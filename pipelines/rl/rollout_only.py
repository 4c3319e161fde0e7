"""Responses of the model that RL starts from, sampled and scored without any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayward.cluster.connect import connect
from rayward.configs.stages import has
from rayward.data import rollout_file
from rayward.pipelines.rl.responses import PromptStream
from rayward.pipelines.rl.rl_actors import RlActors
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics


def rollout_only(run: Run, folder: Path) -> dict[str, float]:
    """Sample responses to the prompts of every iteration, score them and write them to `folder`.

    Raises StageError where the folder holds rollouts already, or the config asks for extra prompts.
    """
    config = run.config
    if config.rl.extra_prompts:
        raise StageError(
            f"rl.extra_prompts {config.rl.extra_prompts} has no effect with --rollout-only, which "
            "replaces no answers; set it to 0"
        )
    if has(config, "sft"):
        run.require("sft")
    if any(folder.glob("*.parquet")):
        raise StageError(f"{folder} holds rollouts already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    connect(config.cluster)
    scores: list[float] = []
    with (
        RlActors(run, training=False) as actors,
        Metrics(folder, "rollouts", config.rl.iterations, "iter") as metrics,
    ):
        actors.ready()
        # Prompts and request seeds are those of the RL stage, so its iteration 0 samples the same.
        stream = PromptStream(run, actors.renderer)
        for iteration in range(config.rl.iterations):
            prompts, ids = stream.take(config.rl.prompts_per_iteration)
            rollouts = actors.generate(ids, iteration).all()
            rollouts = rollouts.with_columns(scores=actors.reward.score(rollouts, prompts))
            rollout_file.write(
                folder / f"{iteration:05d}.parquet", rollouts, [prompt.id for prompt in prompts]
            )
            assert rollouts.scores is not None
            scores.append(float(rollouts.scores.mean()))
            length = float(rollouts.responses.lengths.mean())
            metrics.log(iteration, {"score": scores[-1], "length": length}, ("score", "length"))
    return {"iterations": len(scores), "score": float(np.mean(scores))}
