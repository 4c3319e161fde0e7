"""The vLLM engines behind one call: requests dealt to them, and the proof of a weight transfer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from rayward.actors.models.proof import transfer_gap
from rayward.actors.pulse import Watch
from rayward.actors.renewable import RenewableGroup
from rayward.actors.rollout.generation import Generation
from rayward.actors.rollout.worker import RolloutEngine
from rayward.configs.plan import max_mismatch
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.data.ragged import Ragged, stack
from rayward.data.rollouts import Rollouts

# Tokens of a probe are far less likely than those of responses, and their log-probs less exact.
PROBE_SLACK = 3.0

SeedParts = tuple[int | str, ...]


@dataclass(frozen=True)
class ExtraPrompts:
    """Prompts that are answered once each along with others, and what their seeds are made of."""

    prompts: Ragged
    seed_parts: SeedParts


class RolloutGroup(RenewableGroup):
    """vLLM engines behind one call.

    Prompts are dealt out in turn, responses come back in the order of the requests. Without
    `load_weights` the engines read no weights but wait for those of a transfer. Of these a lost one
    is started anew only where `bring_weights` says how it gets what the others hold.
    """

    bring_weights: Callable[[Sequence[ActorHandle]], None] | None = None

    def __init__(
        self,
        folder: str,
        config: Config,
        sender: Role,
        load_weights: bool = True,
        seats: Sequence[Any] | None = None,
        later: Sequence[Any] = (),
    ):
        self.backend = transfer_backend(config, sender)
        self.allowed_gap = max_mismatch(config)
        self.loads = load_weights
        role, arguments = config.resources.rollout, (folder, config, self.backend, load_weights)
        super().__init__(
            "rollout", RolloutEngine, role, config.cluster, arguments, seats, later=later
        )
        # vLLM measures the free memory when it starts: nobody else may load meanwhile.
        if 0 < role.gpus < 1:
            try:
                self.ready()
            except BaseException:
                self.stop()
                raise

    def renew(self, lost: Sequence[ActorHandle], error: Exception) -> list[ActorHandle]:
        """Start engines anew, with the weights that the others hold."""
        if not self.loads and self.bring_weights is None:
            raise error
        new = super().renew(lost, error)
        if new and self.bring_weights:
            self.bring_weights(new)
        return new

    def renew_all(self, error: Exception) -> None:
        """Start all engines anew; a transfer brings their weights."""
        super().renew(self.actors, error)

    def prove(
        self,
        probe: tuple[list[int], list[float]],
        version: int,
        engines: Sequence[ActorHandle] | None = None,
    ) -> float:
        """Hold the engines (None: all) against the sender's `probe` of the weights just sent.

        Returns the largest `transfer_gap`, in nats. Raises RuntimeError where it is larger than
        that between trainer and engine may be.
        """
        ids, expected = probe
        allowed = PROBE_SLACK * self.allowed_gap
        engines = list(self.actors if engines is None else engines)
        logprobs = self.finish([self.ask(engine, "probe", (ids,)) for engine in engines])
        gaps = [transfer_gap(of_engine, expected, allowed) for of_engine in logprobs]
        worst = int(np.argmax(gaps))
        # Not `>`, which a NaN would pass; argmax puts NaN first.
        if not gaps[worst] <= allowed:
            # Without the cap on single tokens that `transfer_gap` has.
            mean = float(np.abs(np.subtract(logprobs[worst], expected)).mean())
            worst_engine = self.actors.index(engines[worst])
            raise RuntimeError(
                f"weight transfer {version} is not proved: the log-probs of a fixed row differ by "
                f"{mean:.3g} nats on the average between the policy and rollout engine "
                f"{worst_engine} (allowed {allowed:g}, from rl.max_mismatch), so some weight did "
                "not arrive, or the engine computes another model"
            )
        return gaps[worst]

    def generate(self, *arguments: Any, **named: Any) -> Rollouts:
        """What `stream` takes, at once."""
        return self.stream(*arguments, **named).all()

    def stream(
        self,
        prompts: Ragged,
        samples_per_prompt: int,
        seed_parts: SeedParts,
        stop_token_ids: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        prompts_per_part: int | None = None,
        span_name: str = "generate",
        extra: ExtraPrompts | None = None,
    ) -> Generation:
        """Start to draw `samples_per_prompt` responses to each prompt, a prompt's side by side.

        The seed of a response is a hash of `seed_parts` (run seed, stage, iteration, ...), prompt
        row and sample number. Responses come in parts of so many prompts (null: all), whatever the
        number of engines. `extra` prompts get one response each in the same batch, which come
        as a part of their own, the last.
        """
        if self.loads:  # else a transfer is the time for it
            self.take_back()
        requests = _requests(prompts, samples_per_prompt, seed_parts, prompts_per_part)
        if extra:
            requests = _with_extra(requests, extra)
        # By prompt, so that all samples of one meet the same engine and its prefix cache. Which
        # engine has a request changes no token of it: its seed is its own.
        engine_of = requests.prompt_index % len(self.actors)
        rows_of = [
            (self.actors[engine], np.flatnonzero(engine_of == engine))
            for engine in np.unique(engine_of).tolist()
        ]
        how = (temperature, max_new_tokens, list(stop_token_ids))
        asked = _Asked(self, requests, how, span_name)
        return Generation(asked, rows_of, requests.part_of, self.cluster.call_timeout_s)


@dataclass(frozen=True)
class _Requests:
    """Responses to draw, in the order in which they come back."""

    prompts: Ragged
    prompt_index: np.ndarray
    """[requests] row of `prompts`."""
    seeds: np.ndarray
    """[requests] see `request_seed`."""
    part_of: np.ndarray
    """[requests] number of the part that it comes with."""


class _Asked:
    """The engines as a generation sees them."""

    def __init__(
        self,
        group: RolloutGroup,
        requests: _Requests,
        how: tuple[float, int, list[int]],
        span_name: str,
    ) -> None:
        self.group, self.requests, self.how, self.span_name = group, requests, how, span_name

    def ask(self, engine: ActorHandle, rows: np.ndarray) -> ray.ObjectRefGenerator:
        requests = self.requests
        index, parts = requests.prompt_index[rows], requests.part_of[rows].tolist()
        stream: ray.ObjectRefGenerator = engine.generate.options(num_returns="streaming").remote(
            requests.prompts.take(index),
            index,
            requests.seeds[rows],
            *self.how,
            parts,
            self.span_name,
        )
        return stream

    def renew(self, engines: list[ActorHandle], error: Exception) -> list[ActorHandle]:
        group = self.group
        # Another call may have met the loss before.
        if lost := [engine for engine in engines if engine in group.actors]:
            group.renew(lost, error)
        heirs = [group.heir(engine) for engine in engines]
        # Where nobody stands in for it, the others share its work.
        others = cycle(group.actors)
        return [heir or next(others) for heir in heirs]

    def numbers(self, engines: list[ActorHandle]) -> list[int]:
        actors = self.group.actors
        return [actors.index(engine) for engine in engines if engine in actors]

    def watch(self, engines: list[ActorHandle]) -> Watch:
        return self.group.watch_actors(engines)


def _requests(
    prompts: Ragged, samples_per_prompt: int, seed_parts: SeedParts, prompts_per_part: int | None
) -> _Requests:
    prompt_index = np.repeat(np.arange(len(prompts)), samples_per_prompt)
    seeds = np.array(
        [
            request_seed(*seed_parts, row, sample)
            for row in range(len(prompts))
            for sample in range(samples_per_prompt)
        ]
    )
    part_of = prompt_index // (prompts_per_part or max(1, len(prompts)))
    return _Requests(prompts, prompt_index, seeds, part_of)


def _with_extra(requests: _Requests, extra: ExtraPrompts) -> _Requests:
    """The requests, and one for each extra prompt, as the last part."""
    rows = np.arange(len(extra.prompts))
    seeds = [request_seed(*extra.seed_parts, row, 0) for row in rows.tolist()]
    last_part = requests.part_of.max(initial=-1) + 1
    return _Requests(
        stack([requests.prompts, extra.prompts]),
        np.concatenate([requests.prompt_index, len(requests.prompts) + rows]),
        np.concatenate([requests.seeds, seeds]),
        np.concatenate([requests.part_of, np.full(len(rows), last_part)]),
    )


def request_seed(*parts: int | str) -> int:
    """63-bit seed that depends on all parts; equal parts give equal seeds on every machine."""
    # Not Python's hash, which differs from process to process. 63 bits fit a signed integer.
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def transfer_backend(config: Config, sender: Role) -> str:
    """The weight-transfer backend between a sender and the engines: that of the config, or what
    `auto` means there. (The schema has checked that the one that is asked for can work.)
    """
    wanted, rollout = config.rollout.weight_transfer, config.resources.rollout
    if wanted == "ipc" and sender is not config.resources.policy:
        return "object_store"  # the models of an evaluation do not stand beside every engine
    if wanted == "auto":
        return "nccl" if sender.gpus > 0 and rollout.gpus >= 1 else "object_store"
    return wanted
