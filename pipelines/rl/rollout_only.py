"""Responses of the model that RL starts from, sampled and scored without any training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rayward.cluster.connect import connect
from rayward.configs.decisive import decisive
from rayward.configs.stages import has
from rayward.data import rollout_file
from rayward.pipelines.rl.responses import PromptStream
from rayward.pipelines.rl.rl_actors import RlActors
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics

MADE_BY = "made_by.json"


def rollout_only(run: Run, folder: Path) -> dict[str, float]:
    """Sample responses to the prompts of every iteration, score them and write them to `folder`.

    Goes on after those that are there, of the same model and settings. Raises StageError where the
    folder holds others, or all of them, or the config asks for extra prompts.
    """
    config = run.config
    if config.rl.extra_prompts:
        raise StageError(
            f"rl.extra_prompts {config.rl.extra_prompts} has no effect with --rollout-only, which "
            "replaces no answers; set it to 0"
        )
    if has(config, "sft"):
        run.require("sft")
    done = _done(run, folder)
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
            path = folder / f"{iteration:05d}.parquet"
            if iteration < done:
                rollouts = rollout_file.read(path)[0]
            else:
                rollouts = actors.generate(ids, iteration).all()
                rollouts = rollouts.with_columns(scores=actors.reward.score(rollouts, prompts))
                rollout_file.write(path, rollouts, [prompt.id for prompt in prompts])
            assert rollouts.scores is not None
            scores.append(float(rollouts.scores.mean()))
            length = float(rollouts.responses.lengths.mean())
            metrics.log(iteration, {"score": scores[-1], "length": length}, ("score", "length"))
    return {"iterations": len(scores), "score": float(np.mean(scores))}


def _done(run: Run, folder: Path) -> int:
    """How many iterations the folder has; StageError where they are of something else."""
    settings = decisive(run.config, f"rl/{run.config.rl.algorithms[0]}")
    # What is learned from them decides none of them.
    made_by = {name: settings[name] for name in ("model", "rollout", "scoring", "seed")} | {
        name: settings["rl"][name]
        for name in ("iterations", "prompts_per_iteration", "samples_per_prompt")
    }
    made_by["start"] = (
        run.first if not has(run.config, "sft") else run.manifest("sft")["fingerprint"]
    )
    made_by = json.loads(json.dumps(made_by))
    done = 0
    while (folder / f"{done:05d}.parquet").is_file():
        done += 1
    told = folder / MADE_BY
    same = told.is_file() and read_json(told) == made_by
    if any(folder.glob("*.parquet")) and (not same or done == run.config.rl.iterations):
        what = "all of them" if same else "others than these would be"
        raise StageError(f"{folder} holds rollouts already ({what}); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(told, made_by)
    if done:
        print(f"   rollouts: goes on after {done} of {run.config.rl.iterations} iterations")
    return done
