"""Stage rl: online RL. Each algorithm of the config starts from the SFT model (or model.path) and
learns by itself.

One iteration k: sample responses, score them, estimate advantages, update policy and critic, bring
the new weights to the rollout engines. Who does the work stands in rl_actors.py; this file says who
waits for whom. Below, wk are the weights after k updates. Scorers are the reward sources, the
reference, and the learners (policy and critic) with old log-probs and values. All calls to an actor
queue in the order in which the driver makes them.

rl.mode sync. The scorers start on the first part of the responses while the engines sample the
others. Engines wait for the update, learners for the responses:

    engines   [sample k by wk]                                     .-->[sample k+1 by wk+1]
                    | each part as it is complete                  |
    scorers         '-->[score k]                                  | weights unblock the engines
                            | all scores unblock the driver        |
    driver                  '-->[advantages k]                     |
                                     |                             |
    learners                         '-->[update k]-->[send wk+1]--'

rl.mode one_step_off. The engines sample one iteration ahead, with weights one update old. Scores
need both the responses and the updated policy; the send needs idle engines, and starts them again.
Reward and reference models score k beside the send and the next sampling:

    engines   [sample k by wk-1]--.                         .-->[sample k+1 by wk]--.
                                  | responses               | weights               | responses
    learners  [update k-1]--------'-->[score k]-->[send wk]-'-->[update k]----------'-->[score k+1]

rl.mode colocate. Engines and learners take turns on the same GPUs (colocation.py); scoring by the
learners waits until all responses are there:

    GPUs   [engines: sample k]-->[engines sleep, learners reload]-->[learners: score k, update k]-.
               ^                                                                                  |
               '--[learners offload, engines take their cache]<--[both hold weights: send wk+1]<--'
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rayward.cluster.connect import connect
from rayward.configs.plan import inputs
from rayward.configs.summary import arithmetic_lines
from rayward.data import rollout_file
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.advantages import (
    MismatchError,
    RewardShaper,
    check_mismatch,
    estimate_advantages,
    gap,
    trains_policy,
)
from rayward.pipelines.rl.alarms import counts
from rayward.pipelines.rl.checkpoints import RlCheckpoints
from rayward.pipelines.rl.iteration_files import IterationWriter
from rayward.pipelines.rl.monitor import Monitor
from rayward.pipelines.rl.responses import Replay, Sampler, replay_digest
from rayward.pipelines.rl.rl_actors import RlActors
from rayward.pipelines.rl.summary import summary
from rayward.pipelines.rl.trace import write_trace
from rayward.pipelines.run.errors import StageError, of_infrastructure
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics
from rayward.pipelines.run.stage import Stage, begin

FIRST_STEP_GAPS = ("mean", "max", "k3", "factor")
"""Figures that the first optimizer step takes of the gap between engine and policy."""


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
    # All are begun before anything starts: a conflict of the last algorithm must not show after
    # hours of the first.
    stages = {
        name: begin(run, f"rl/{name}", inputs(config, f"rl/{name}"), more)
        for name in config.rl.algorithms
    }
    missing = {name: stage for name, stage in stages.items() if stage}
    if not missing:
        return None
    print("\n".join(arithmetic_lines(config)))
    connect(config.cluster)
    results: dict[str, Any] = {}
    with RlActors(run, replays=replay is not None) as actors:
        for algorithm, stage in missing.items():
            # Else the seconds of the second algorithm would count those of the first.
            stage.started_at = time.perf_counter()
            checkpoints = RlCheckpoints(stage)
            with actors.learning(algorithm, checkpoints):
                sampler = Replay(replay, actors) if replay else Sampler(actors)
                metrics = OnlineTraining(stage, algorithm, actors, sampler, checkpoints).run()
            results[algorithm] = stage.finish(metrics)
    return results


class OnlineTraining:
    """The iterations of one algorithm, from the first responses to the saved model."""

    def __init__(
        self,
        stage: Stage,
        algorithm: str,
        actors: RlActors,
        sampler: Sampler | Replay,
        checkpoints: RlCheckpoints,
    ) -> None:
        self.stage, self.algorithm = stage, algorithm
        self.actors, self.sampler, self.checkpoints = actors, sampler, checkpoints
        self.config, self.rl = stage.run.config, stage.run.config.rl
        self.monitor = Monitor(stage, algorithm, actors)
        before_s = checkpoints.state.get("seconds", 0.0)
        self.record = IterationWriter(stage, actors, checkpoints.history, before_s)
        self.shaper = RewardShaper.of(self.config, algorithm)
        self.batch: tuple[Rollouts, list[Prompt]] | None = None
        self.updating = False
        self.replays = isinstance(sampler, Replay)
        # A replay has nothing to sample ahead, and runs in the order of sync.
        self.samples_ahead = self.rl.mode == "one_step_off" and not self.replays
        if checkpoints.done:
            self._restore(checkpoints)

    def run(self) -> dict[str, Any]:
        """Train and save the model; the metrics of the stage's manifest."""
        first = self.checkpoints.done - len(self.record.history)
        kept = [{"step": step, **line} for step, line in enumerate(self.record.history, first)]
        with (
            self.checkpoints.asked(),
            Metrics(self.stage.folder, self.algorithm, self.rl.iterations, "iter", kept) as metrics,
        ):
            for iteration in range(self.checkpoints.done, self.rl.iterations):
                before = self._remembered()
                try:
                    line = self._iterate(iteration)
                except (FloatingPointError, MismatchError):
                    self._keep_batch(iteration)
                    raise
                except Exception as error:
                    if of_infrastructure(error):
                        self._keep_learners(iteration, before)
                    raise
                metrics.log(iteration, line, ("score", "kl", "length"))
                if self.checkpoints.writing:
                    self._checkpoint(iteration + 1)
                if self.checkpoints.ends:
                    raise KeyboardInterrupt
                # After the line is written, which shows why the stage stopped.
                self.monitor.check_patience()
            if self.checkpoints.stop:  # asked for after the last update
                self._rescue(self.rl.iterations, self._remembered())
            # The model is saved next, which is gone on with from it where that fails.
            self.checkpoints.settle()
        if self.checkpoints.done == self.rl.iterations:
            # Taken up for this alone: the engines have the memory, after the first transfer.
            self.actors.colocation.to_learners()
        tokenizer = self.stage.run.folder / "prepare" / "tokenizer"
        folder = self.stage.folder / "model"
        # On every rank: gathering the weights is a collective.
        self.actors.policy.call("save", str(folder.resolve()), str(tokenizer.resolve()))
        self.checkpoints.tell()
        write_trace(self.stage.folder)
        alarms = counts(self.monitor.alarms)
        return summary(self.algorithm, self.record.history, alarms) | {
            "machine": self.actors.machine
        }

    def _iterate(self, iteration: int) -> dict[str, Any]:
        """One iteration; its line of metrics."""
        record, self.updating = self.record, False
        record.start(iteration)
        prompts, fixed = self._sample(iteration)
        self.checkpoints.go_on()
        self.batch = None
        rollouts, measures = self._score(prompts)
        staleness = self._staleness(rollouts, iteration)
        measures |= self._check_engines(rollouts, fixed, iteration, staleness)
        measures |= record.timed(
            "monitor", self.monitor.measure, iteration, rollouts, measures, fixed
        )
        measures |= self._update(rollouts, iteration, staleness, measures)
        # Now, while the learners have their memory in mode colocate too.
        record.timed("checkpoint", self.checkpoints.begin, iteration + 1, self.actors.learners)
        # The last weights have nobody to sample for.
        if not self._is_last(iteration) and not self.samples_ahead:
            record.note(record.timed("transfer", self.actors.send_weights, iteration + 1))
        record.note(measures | {"staleness": staleness})
        record.timed("save", record.save, rollouts, prompts, self.shaper)
        return record.end(rollouts, self.sampler.tokens_per_s, self.sampler.in_flight)

    def _checkpoint(self, done: int) -> None:
        """Add the driver's part to what the learners have written."""
        sampler, in_flight = self.sampler, None
        if isinstance(sampler, Sampler):
            in_flight = sampler.settle()
            # Responses to the fixed prompts by the weights that the engines hold now: after a
            # restart they hold later ones, and the last iteration sends none.
            if in_flight and self._is_last(done):
                sampler.add_fixed(self.monitor.sample_fixed(done))
        self.checkpoints.complete(self._remembered(), self.record.history, in_flight)

    def _remembered(self) -> dict[str, Any]:
        """What the driver goes on from, beside the history."""
        return {
            "shaper": self.shaper.state_dict(),
            "monitor": self.monitor.state_dict(),
            "seconds": self.record.seconds,
            "taken": self.sampler.stream.taken if isinstance(self.sampler, Sampler) else 0,
        }

    def _keep_learners(self, iteration: int, before: dict[str, Any]) -> None:
        """After an engine or a scorer was lost: a checkpoint of what stood `before` the iteration.

        Only where the learners have not begun their update, and have their memory; with answers in
        flight, whose engines may be the lost ones, the last checkpoint has to do.
        """
        apart = not self.samples_ahead and not self.actors.colocation.on
        if apart and not self.updating and iteration > self.checkpoints.last:
            self._rescue(iteration, before)

    def _rescue(self, done: int, state: dict[str, Any]) -> None:
        self.checkpoints.rescue(done, self.actors.learners, state, self.record.history)

    def _restore(self, checkpoints: RlCheckpoints) -> None:
        """Remember what the driver of an earlier try did."""
        if checkpoints.state:
            self.shaper.load_state_dict(checkpoints.state["shaper"])
            self.monitor.load_state_dict(checkpoints.state["monitor"])
        if isinstance(self.sampler, Sampler):
            arrived = checkpoints.in_flight()
            self.sampler.restore(checkpoints.taken, checkpoints.done, arrived)

    def _keep_batch(self, iteration: int) -> None:
        """Write the responses whose numbers ended the stage, for whoever looks for the reason."""
        if self.batch is None:
            return
        rollouts, prompts = self.batch
        folder = self.stage.folder / "failed"
        folder.mkdir(exist_ok=True)
        path = folder / f"{iteration:05d}.parquet"
        rollout_file.write(path, rollouts, [prompt.id for prompt in prompts])
        tqdm.write(
            f"   the responses of iteration {iteration} are kept in {path}: --replay {folder} with "
            "rl.iterations 1 trains on them alone"
        )

    def _sample(self, iteration: int) -> tuple[list[Prompt], Rollouts | None]:
        """Sample the iteration's responses and hand them to the scorers; its prompts, and responses
        to the fixed prompts of the monitor where it is their turn.
        """
        record, sampler, actors = self.record, self.sampler, self.actors
        last = self._is_last(iteration)
        # Fixed prompts go along in the same batch of the engines, as no call of their own.
        # Sampled ahead they would be answered by weights one update old: then they wait.
        sampler.begin(
            iteration, None if self.samples_ahead else self.monitor.fixed_prompts(iteration)
        )
        # Each part of the responses goes to the scorers in here, as soon as it is complete.
        prompts = record.timed("generate", sampler.finish, iteration, self.shaper)
        record.note(sampler.figures)
        # Between two generations the engines are idle: they cannot take weights while requests
        # run. The policy was asked for its log-probs before, and sends after them. Iteration 0
        # finds w0 there already (`RlActors.learning`).
        if self.samples_ahead and iteration and not last:
            record.note(record.timed("transfer", actors.send_weights, iteration))
        fixed = sampler.fixed_responses or record.timed(
            "monitor", self.monitor.sample_fixed, iteration
        )
        # Only where nobody could be asked yet: with colocate, and in a replay.
        sampler.hand_over(prompts, iteration)
        if self.samples_ahead and not last:
            # An engine's calls queue: once it samples, the request for its spans would wait for
            # the end of that, and the driver with it.
            actors.take_spans("rollout")
            sampler.begin(iteration + 1)
        return prompts, fixed

    def _score(self, prompts: list[Prompt]) -> tuple[Rollouts, dict[str, Any]]:
        """Wait for all scorers; the rollouts with their advantages, and the figures so far."""
        rollouts, figures = self.record.timed("score", self.actors.scoring.collect, prompts)
        self.batch = (rollouts, prompts)
        rollouts, measures = self.record.timed(
            "advantages", estimate_advantages, rollouts, self.config, self.algorithm, self.shaper
        )
        return rollouts, measures | figures

    def _staleness(self, rollouts: Rollouts, iteration: int) -> int | None:
        """Updates between the weights that sampled and those that are trained; None of a replay,
        whose versions count the updates of another run.
        """
        return None if self.replays else iteration - rollouts.weight_version

    def _check_engines(
        self, rollouts: Rollouts, fixed: Rollouts | None, iteration: int, staleness: int | None
    ) -> dict[str, float]:
        """The gap between the engines' and the trainer's log-probs.

        RuntimeError where responses of equal weights show that they are two different models.
        """
        gaps: dict[str, float] = {}
        # Where old log-probs are the engine's, both columns are the same and the gap would be 0:
        # then the first optimizer step measures it (`_update`).
        if not self.actors.scoring.old_is_engines:
            gaps |= gap(rollouts)
            # Of stale responses the gap is what the policy has learned, and no fault.
            if staleness == 0:
                check_mismatch(gaps, self.config)
        # Where the iteration's own responses are by other weights, the fixed prompts tell.
        if fixed and fixed.weight_version == iteration and staleness != 0:
            fixed_gaps = self.record.timed("monitor", self.actors.engine_gap, fixed)
            check_mismatch(fixed_gaps, self.config)
            gaps |= {f"fixed_{name}": value for name, value in fixed_gaps.items()}
        return gaps

    def _update(
        self, rollouts: Rollouts, iteration: int, staleness: int | None, measures: dict[str, Any]
    ) -> dict[str, Any]:
        """Train policy and critic, or the critic alone; the figures of the update."""
        actors, self.updating = self.actors, True
        trains = trains_policy(self.rl, actors.critic is not None, iteration, measures)
        # The KL coefficient answers to a policy that moves; it acts from the next iteration on.
        if trains and "kl" in measures:
            self.shaper.update_kl_coef(measures["kl"], len(rollouts))
        figures = self.record.timed("update", actors.update, rollouts, iteration, trains)
        if actors.scoring.old_is_engines and trains:
            # In the first step policy and engine have equal weights, so the ratio is their gap.
            figures |= {
                f"mismatch_{name}": figures.pop(f"policy/first_{name}") for name in FIRST_STEP_GAPS
            }
            if staleness == 0:
                check_mismatch(figures, self.config)
        return figures

    def _is_last(self, iteration: int) -> bool:
        return iteration + 1 == self.rl.iterations
