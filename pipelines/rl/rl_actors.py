"""The actors of online RL: who is started and when, what each iteration asks of them, and what they
did when.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rayward.actors.frozen_groups import reference_group
from rayward.actors.group import Group, TrainingGroup, critic_group, policy_group, tell_hosts
from rayward.actors.rollout.generation import Arrived, Generation
from rayward.actors.rollout_group import ExtraPrompts, RolloutGroup, SeedParts
from rayward.actors.training.updates import mean_over_steps
from rayward.cluster.placement import Placement
from rayward.configs.plan import critic_start, has_reference, roles
from rayward.configs.sections.algorithms import WITH_CRITIC
from rayward.data.ragged import Ragged, merge
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.advantages import gap
from rayward.pipelines.rl.checkpoints import RlCheckpoints
from rayward.pipelines.rl.colocation import ColocationSwitch
from rayward.pipelines.rl.response_scoring import ResponseScoring
from rayward.pipelines.rl.transfer import Transfer
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run
from rayward.pipelines.scoring.reward_folder import check_same_tokens
from rayward.pipelines.scoring.scorer import Scorer, second_model

CHUNKS = 4  # in which the responses of an iteration go to be scored, while the engines sample on
LAYOUT = ("padding", "computed_tokens")
"""Figures of an update that depend on how its rows lie in memory, and change no result."""


class RlActors:
    """The actors of the stage. Engines, reference and reward models serve every algorithm; each has
    its own learners, policy and critic.
    """

    policy: TrainingGroup
    critic: TrainingGroup | None
    scoring: ResponseScoring
    colocation: ColocationSwitch
    transfer: Transfer
    machine: list[dict[str, float]]
    """What each policy rank says of its model and machine (`Policy.describe`)."""

    def __init__(self, run: Run, training: bool = True, replays: bool = False):
        """`training`: else only what samples and scores is started. `replays`: the responses come
        from files.
        """
        self.config, self.run, self.replays = run.config, run, replays
        config = run.config
        self.renderer = Renderer.of_run(run)
        if training and set(config.rl.algorithms) & set(WITH_CRITIC):
            self.critic_start = self._critic_start()
        # Of all at once, before any actor starts; the learners of every algorithm take theirs.
        self.placement = Placement(roles(config, "rl"), config.cluster, config)
        try:
            self._start_shared(training)
        except BaseException:
            # Nobody has entered the block that gives the places back; what stands on them ends.
            self.placement.remove()
            raise
        self.spans: list[dict[str, Any]] = []

    def _start_shared(self, training: bool) -> None:
        """Start the actors that serve every algorithm."""
        run, config, start, seats = self.run, self.config, self.run.first, self.placement.seats
        # An engine that is to be trained for gets all weights by transfer, so it loads none.
        self.rollout = RolloutGroup(
            start,
            config,
            config.resources.policy,
            not training,
            seats("rollout"),
            self.placement.later("rollout") if training else (),
        )
        self.reward = Scorer(run, self.renderer, self.placement)
        self.second = second_model(run, self.renderer, self.placement) if training else None
        # In the order of their start; `ready` and `stop` go through it.
        self.shared: dict[str, Group] = {"rollout": self.rollout}
        if training and any(has_reference(config, name) for name in config.rl.algorithms):
            self.shared["reference"] = reference_group(
                start, config, config.rollout.temperature, seats("reference")
            )
        for number, group in enumerate(self.reward.groups):
            self.shared[f"reward {number}" if number else "reward"] = group
        if self.second:
            self.shared["second"] = self.second.group

    def __enter__(self) -> RlActors:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.shared.values():
            group.stop()
        self.placement.remove()

    def ready(self) -> None:
        """Wait for the actors that serve every algorithm."""
        for group in self.shared.values():
            group.ready()

    @contextmanager
    def learning(self, algorithm: str, checkpoints: RlCheckpoints) -> Iterator[None]:
        """Policy and critic of an algorithm, from the SFT and the reward model or a checkpoint; the
        engines hold the policy's weights as the version of the iterations that are done.

        The first time it waits for the other actors too, which start meanwhile.
        """
        config = self.config
        colocated = config.rl.mode == "colocate"
        if colocated:
            # The learners load into the memory that the engines hold until they sleep.
            self.rollout.ready()
            self.rollout.call("sleep")
        seats = self.placement.seats
        self.policy = policy_group(self.run.first, config, algorithm, seats("policy"))
        self.critic = None
        if algorithm in WITH_CRITIC:
            folder, new_head = self.critic_start
            self.critic = critic_group(folder, config, seats("critic"), new_head)
        self.colocation = ColocationSwitch(self.rollout, list(self.learners.values()), colocated)
        self.scoring = ResponseScoring(
            config,
            algorithm,
            self.policy,
            self.critic,
            self.shared.get("reference"),
            self.reward,
            self.second,
            self.replays,
        )
        try:
            # All start at once, and only then is one waited for.
            starting = [(group, group.begin_start()) for group in self.learners.values()]
            self.ready()
            for group, calls in starting:
                group.finish(calls, config.cluster.start_timeout_s)
            tell_hosts([*self.learners.values(), *self.shared.values()])
            self.machine = self.policy.call("describe")
            # After `ready`: opening the way of the weights calls every engine.
            self.transfer = Transfer(self.policy, self.rollout, self.colocation, config)
            checkpoints.load(self.learners)
            self.send_weights(checkpoints.done)
            # The work of the start belongs to no iteration.
            self.take_spans()
            self.spans = []
            yield
        finally:
            self.rollout.bring_weights = None
            for group in self.learners.values():
                group.stop()

    def _critic_start(self) -> tuple[str, bool]:
        """The folder, and whether its head is new. StageError for one that reads other ids."""
        start = critic_start(self.config)
        if start == "reward":
            return self.run.model("reward"), False
        if start == "policy":
            return self.run.first, True
        folder = check_same_tokens(
            start, self.renderer, "where the critic starts", "set rl.critic: policy"
        )
        return folder, False

    @property
    def learners(self) -> dict[str, TrainingGroup]:
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    def generate(
        self,
        prompts: Ragged,
        iteration: int,
        extra: ExtraPrompts | None = None,
        round_number: int = 0,
    ) -> Generation:
        """Start to sample responses to the prompts, and to `extra` ones, with the weights
        that the engines hold. Rounds above 0 are of rl.extra_prompts.
        """
        rollout = self.config.rollout
        prompts_per_chunk = -(-len(prompts) // CHUNKS)  # rounded up
        # What a request's seed is made of: the same response whatever engine samples it.
        seed_parts: SeedParts = (self.config.seed, "rl", iteration)
        if round_number:
            seed_parts += ("extra", round_number)
        return self.rollout.stream(
            prompts,
            self.config.rl.samples_per_prompt,
            seed_parts,
            self.renderer.stop_token_ids,
            rollout.temperature,
            rollout.max_new_tokens,
            prompts_per_chunk,
            extra=extra,
        )

    def engine_gap(self, responses: Rollouts) -> dict[str, float]:
        """How far the policy's log-probs of these responses are from the engine's."""
        ranks = self.policy.call("logprobs", ray.put(responses), "monitor")
        logprobs_N = merge([shard for shard, _ in ranks], len(responses))
        return gap(responses.with_columns(policy_logprobs=logprobs_N))

    def update(self, rollouts: Rollouts, iteration: int, policy: bool = True) -> dict[str, Any]:
        """Train policy (if asked to) and critic side by side; the mean over the optimizer steps of
        what they report.

        How the policy's rows lay in memory, which changes no result, stands under "time".
        """
        batch = ray.put(rollouts)
        # The critic starts first and works while `call` waits for the policy.
        critic_calls = self.critic.begin("update", batch, iteration) if self.critic else None
        metrics: dict[str, Any] = {}
        if policy:
            self.transfer.outdated()
            means = mean_over_steps(self.policy.call("update", batch, iteration))
            metrics["time"] = {name: means.pop(name) for name in LAYOUT}
            metrics |= {f"policy/{name}": value for name, value in means.items()}
        if self.critic and critic_calls:
            means = mean_over_steps(self.critic.finish(critic_calls))
            metrics |= {
                f"critic/{name}": value for name, value in means.items() if name not in LAYOUT
            }
        return metrics

    def send_weights(self, version: int) -> dict[str, Any]:
        """Policy to rollout engines; figures of the transfer."""
        return self.transfer.send(version)

    def take_spans(
        self, only: str | None = None, in_flight: Generation | Arrived | None = None
    ) -> None:
        """Remember what the actors did and when; `only` those of one role, since a call waits for
        work before it.

        Engines at work on the responses `in_flight` are not waited for: so far they have been at it
        since it began.
        """
        groups = {**self.shared, **self.learners}
        busy = in_flight.running() if in_flight else []
        if in_flight and busy:
            del groups["rollout"]
            # Their own span comes in the next iteration; trace.py draws that and not the open one.
            known = {"start": in_flight.started_at, "end": time.time(), "open": True}
            self.spans += [
                {"role": "rollout", "rank": rank, "name": "generate", **known} for rank in busy
            ]
        pending = {
            name: group.begin("take_spans")
            for name, group in groups.items()
            if only in (None, name)
        }
        for name, calls in pending.items():
            # "reward 1", "reward 2" are models of one role.
            role = name.split(" ")[0]
            for rank, spans in enumerate(groups[name].finish(calls)):
                self.spans += [
                    {"role": role, "rank": rank, "name": task, "start": start, "end": end}
                    for task, start, end in spans
                ]
