"""Stage 5: online RL. Each algorithm of the config starts from the SFT model (or model.path) and
learns by itself.

One iteration: generate, score, estimate advantages, update policy and critic, bring the new weights
to the rollout engines. The loop below is the whole of it; who does the work stands in rl_actors.py. In
mode one_step_off the engines draw the next iteration's answers while this one's are trained on,
with weights one update old.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from rayward.cluster.connect import connect
from rayward.configs.plan import inputs
from rayward.configs.stages import has
from rayward.configs.summary import arithmetic_lines
from rayward.data import rollout_file
from rayward.pipelines.rl.advantages import (
    RewardShaper,
    check_mismatch,
    estimate_advantages,
    gap,
    trains_policy,
)
from rayward.pipelines.rl.alarms import counts
from rayward.pipelines.rl.iteration_files import IterationWriter
from rayward.pipelines.rl.monitor import Monitor
from rayward.pipelines.rl.responses import PromptStream, Replay, Sampler, replay_digest
from rayward.pipelines.rl.rl_actors import RlActors
from rayward.pipelines.rl.trace import write_trace
from rayward.pipelines.run.stage import Metrics, Run, Stage, StageError, begin, table


def train_online(run: Run, replay: Path | None = None) -> dict[str, Any] | None:
    """Do what is missing of the stage; None if nothing was. Each algorithm is finished on its own
    (rl/ppo, rl/apa...).

    `replay`: a folder of rollouts (data/rollout_file.py) to train on in place of new ones.
    """
    config = run.config
    if replay and config.rl.old_logprobs == "rollout":
        raise StageError(
            "rl.old_logprobs rollout: log-probs in replayed rollouts are those of the weights "
            "that sampled them, not always of the policy that is trained; use auto or trainer"
        )
    more = {"replay": replay_digest(replay, config)} if replay else {}
    tried = {
        name: begin(run, f"rl/{name}", inputs(config, f"rl/{name}"), more)
        for name in config.rl.algorithms
    }
    missing = {name: stage for name, stage in tried.items() if stage}
    if not missing:
        return None
    print("\n".join(arithmetic_lines(config)))
    connect(config.cluster)
    results: dict[str, Any] = {}
    with RlActors(run, replays=replay is not None) as actors:
        for algorithm, stage in missing.items():
            stage.begun = time.perf_counter()
            with actors.learning(algorithm):
                sampler = Replay(replay, actors) if replay else Sampler(actors)
                metrics = _train(stage, algorithm, actors, sampler)
            results[algorithm] = stage.finish(metrics)
    return results


def _train(
    stage: Stage, algorithm: str, actors: RlActors, sampler: Sampler | Replay
) -> dict[str, Any]:
    config, rl = stage.run.config, stage.run.config.rl
    monitor, record = Monitor(stage, algorithm, actors), IterationWriter(stage, actors)
    shaper = RewardShaper.of(config, algorithm)
    drawn = isinstance(sampler, Sampler)
    ahead = rl.mode == "one_step_off" and drawn
    with Metrics(stage.folder, algorithm, rl.iterations, "iter") as metrics:
        for iteration in range(rl.iterations):
            last = iteration + 1 == rl.iterations
            record.start(iteration)
            sampler.begin(iteration, None if ahead else monitor.fixed(iteration))
            prompts = record.time("generate", sampler.finish, iteration)
            if ahead and iteration and not last:
                record.note(record.time("transfer", actors.send_weights, iteration))
            fixed = sampler.beside or record.time("monitor", monitor.ask, iteration)
            sampler.hand_over(prompts, iteration)
            if ahead and not last:
                actors.take_spans("rollout")
                sampler.begin(iteration + 1)
            rollouts, figures = record.time("score", actors.scored, prompts)
            stale = iteration - rollouts.weight_version if drawn else None  # of a replay: whatever
            rollouts, measures = record.time(
                "advantages", estimate_advantages, rollouts, config, algorithm, shaper
            )
            measures |= figures
            if not actors.old_of_engine:
                measures |= gap(rollouts)
                if stale == 0:
                    check_mismatch(measures, config)
            if fixed and fixed.weight_version == iteration and stale != 0:
                # The answers cannot tell in time.
                own = record.time("monitor", actors.engine_gap, fixed)
                check_mismatch(own, config)
                measures |= {f"fixed_{name}": value for name, value in own.items()}
            measures |= record.time("monitor", monitor.look, iteration, rollouts, measures, fixed)
            trains = trains_policy(rl, actors.critic is not None, iteration, measures)
            if trains and "kl" in measures:
                shaper.saw(measures["kl"], len(rollouts))
            measures |= record.time("update", actors.update, rollouts, iteration, trains)
            if actors.old_of_engine and trains:
                measures |= {
                    f"mismatch_{name}": measures.pop(f"policy/first_{name}") for name in FIRST
                }
                if stale == 0:
                    check_mismatch(measures, config)
            if not last and not ahead:  # the last weights have nobody to sample for
                record.note(record.time("transfer", actors.send_weights, iteration + 1))
            record.note(measures | {"staleness": stale})
            record.time("save", record.files, rollouts, prompts, shaper)
            metrics.log(
                iteration,
                record.end(rollouts, sampler.seconds, sampler.ahead),
                ("score", "kl", "length"),
            )
            monitor.check()
    tokenizer = stage.run.folder / "prepare" / "tokenizer"
    actors.policy.call("save", str((stage.folder / "model").resolve()), str(tokenizer.resolve()))
    write_trace(stage.folder)
    return _summary(algorithm, record.history, counts(monitor.alarms)) | {"machine": actors.about}


FIRST = ("mean", "max", "k3", "factor")


def rollout_only(run: Run, folder: Path) -> dict[str, float]:
    """Answers of the model that RL starts from to the prompts of every iteration, scored and
    written to `folder`.

    Raises StageError where the folder holds rollouts already.
    """
    config = run.config
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
        stream = PromptStream(run, actors.renderer)
        for iteration in range(config.rl.iterations):
            prompts, ids = stream.take(iteration)
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


def _summary(
    algorithm: str, history: list[dict[str, Any]], alarms: dict[str, dict[str, int]]
) -> dict[str, Any]:
    first, last = history[0], history[-1]
    shown = [
        name
        for name in first["time"]
        if name.endswith("_s") and "_per_" not in name and name != "idle_s"
    ]
    medians = {
        name: float(np.median([row["time"].get(name, 0.0) for row in history])) for name in shown
    }
    figures = ("score", "kl", "length", "entropy", "finished")
    metrics = {
        "iterations": len(history),
        "score_first": first["score"],
        "length_first": first["length"],
        **{name: last[name] for name in figures if name in last},
        "mismatch_max": max(
            (
                row[name]
                for row in history
                for name in ("mismatch_max", "fixed_mismatch_max")
                if name in row and (row["staleness"] == 0 or name[:5] == "fixed")
            ),
            default=None,
        ),
        "alarms": alarms,
        "seconds_per_iteration": medians,
    }
    up = [f"{name}: {of['iterations']}, first {of['first']}" for name, of in alarms.items()]
    table(
        algorithm,
        {name: value for name, value in metrics.items() if name != "seconds_per_iteration"}
        | {"alarms": "; ".join(up) or "none"}
        | {f"median {name}": value for name, value in medians.items()},
    )
    return metrics
