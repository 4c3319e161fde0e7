"""The policy's weights on their way to the rollout engines, and to those that are started anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.actor import ActorHandle

from rayward.actors.group import TrainingGroup
from rayward.actors.renewable import lost_by_others
from rayward.actors.rollout_group import RolloutGroup
from rayward.configs.schema import Config
from rayward.pipelines.rl.colocation import ColocationSwitch


class Transfer:
    """The way from a policy to the engines. It is opened at once, so all must be up."""

    def __init__(
        self,
        policy: TrainingGroup,
        rollout: RolloutGroup,
        colocation: ColocationSwitch,
        config: Config,
    ) -> None:
        self.policy, self.rollout, self.colocation = policy, rollout, colocation
        # Then what was sent last is kept, whatever the policy has learned since (Policy.connect).
        self.keeps = config.rl.mode == "one_step_off"
        # Engines that share a GPU with a learner have its memory only in turn.
        self.renews = not colocation.on and rollout.backend != "ipc"
        self.version, self.probe = -1, (list[int](), list[float]())
        self.current = False
        """Whether the policy still has the weights that were sent last."""
        self.connected: list[ActorHandle] = []
        self._connect()

    def _connect(self) -> None:
        self.policy.call("connect", self.rollout.actors, self.rollout.backend)
        self.connected = list(self.rollout.actors)

    def send(self, version: int) -> dict[str, Any]:
        """Versioned, with a deadline, proved by a digest and by log-probs. Figures of it."""
        self.colocation.to_transfer()
        self.rollout.take_back()
        sent = self._send(version)
        rate = sent["bytes"] / sent.pop("seconds")
        # Before the proof: the engines need their cache for its forward pass.
        self.colocation.to_engines()
        self.version, self.probe, self.current = version, sent.pop("probe"), True
        if self.renews:
            self.rollout.bring_weights = self._bring
        sent["gap"] = self.rollout.prove(self.probe, version)
        return {"transfer": {"version": version, **sent}, "time": {"transfer_bytes_per_s": rate}}

    def _send(self, version: int) -> dict[str, Any]:
        """Engines that are lost on the way are started anew, all of them, since others may have
        half of the weights.
        """
        while True:
            try:
                if self.connected != self.rollout.actors:
                    self._connect()
                # Every rank takes part (gathering is a collective); rank 0 tells of it.
                sent: dict[str, Any] = self.policy.call("send_weights", version)[0]
                return sent
            except Exception as error:
                if not self.renews or not lost_by_others(error):
                    raise
                self.rollout.renew_all(error)

    def _bring(self, engines: Sequence[ActorHandle]) -> None:
        """Let engines that were started anew have what the others hold."""
        if not (self.current or self.keeps):
            return  # the next transfer brings what they are to sample with
        self.policy.call("send_again", list(engines), self.version)
        self.rollout.prove(self.probe, self.version, engines)

    def outdated(self) -> None:
        """The policy learns now: it has other weights than the engines, until the next `send`."""
        self.current = False
