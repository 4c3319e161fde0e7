"""Where the responses of an RL iteration come from: sampled by the rollout engines now, or read
from files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rayward.actors.rollout.generation import Arrived, Generation
from rayward.actors.rollout_group import ExtraPrompts
from rayward.configs.schema import Config
from rayward.data import rollout_file
from rayward.data.packing import epoch_order
from rayward.data.ragged import Ragged
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.advantages import RewardShaper
from rayward.pipelines.rl.extra_prompts import DrawnGroups
from rayward.pipelines.rl.rl_actors import CHUNKS, RlActors
from rayward.pipelines.rows.prepared_rows import prompt_rows
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run


class PromptStream:
    """Training prompts in a shuffled order that depends on the seed alone; each pass over them has
    an order of its own.
    """

    def __init__(self, run: Run, renderer: Renderer):
        self.prompts, self.ids = prompt_rows(run, "prompts", renderer)
        self.seed = run.config.seed
        self.taken = 0  # prompts so far, over all passes

    def take(self, count: int) -> tuple[list[Prompt], Ragged]:
        """The next prompts, and their token ids."""
        rows = []
        orders: dict[int, list[int]] = {}  # a shuffle of all prompts for each pass over them
        for position in range(self.taken, self.taken + count):
            pass_number, place = divmod(position, len(self.ids))
            if pass_number not in orders:
                orders[pass_number] = epoch_order(len(self.ids), self.seed, pass_number)
            rows.append(orders[pass_number][place])
        self.taken += count
        return [self.prompts[row] for row in rows], self.ids.take(rows)


class Sampler:
    """New responses, each part of which goes to be scored as soon as it is complete.

    The order of calls for an iteration: `begin`, `finish`, `hand_over`. The next `begin` comes
    after this `finish`, which may still draw prompts; with one_step_off it comes right then.
    """

    def __init__(self, actors: RlActors):
        self.actors, self.stream = actors, PromptStream(actors.run, actors.renderer)
        self.rl = actors.config.rl
        # By iteration, from `begin` to `finish`.
        self.running: dict[int, tuple[list[Prompt], Generation | Arrived]] = {}
        # The iteration whose responses a checkpoint lacked: they are by the weights of today.
        self.drawn_anew: int | None = None
        # Parts that wait for `hand_over`.
        self.waiting: list[Rollouts] = []
        # Responses to the extra prompts of the last `finish`.
        self.fixed_responses: Rollouts | None = None
        # What the engines took for the responses of the last `finish`, and made in that time; both
        # may lie in the iteration before.
        self.seconds, self.tokens = 0.0, 0
        # Of the last `finish`, where it may draw further prompts.
        self.figures: dict[str, float] = {}

    def begin(self, iteration: int, extra: ExtraPrompts | None = None) -> None:
        """Start to sample the responses of an iteration, and those to the `extra` prompts,
        unless that has begun.
        """
        if iteration not in self.running:
            prompts, ids = self.stream.take(self.rl.prompts_per_iteration)
            self.running[iteration] = (prompts, self.actors.generate(ids, iteration, extra))

    def settle(self) -> Arrived | None:
        """Wait for the responses in flight, which stay for `finish`; None where there are none."""
        for iteration, (prompts, generation) in self.running.items():
            arrived = generation.arrived()
            self.running[iteration] = (prompts, arrived)
            return arrived
        return None

    def add_fixed(self, fixed: Rollouts | None) -> None:
        """Responses to extra prompts, beside those that have settled."""
        for prompts, arrived in self.running.values():
            if fixed and isinstance(arrived, Arrived):
                # Numbered as the engines do it; see `_parts`.
                index = fixed.prompt_index + len(prompts)
                arrived.known.append((len(arrived.known), replace(fixed, prompt_index=index)))

    def restore(self, taken: int, iteration: int, arrived: Arrived | None) -> None:
        """Go on with the next prompts after `taken` ones, the last of them those of what has
        `arrived` for an iteration, or with one_step_off was to arrive, and is drawn anew.
        """
        self.stream.taken = taken
        count = self.rl.prompts_per_iteration
        if arrived:
            self.stream.taken -= count
            self.running[iteration] = (self.stream.take(count)[0], arrived)
        elif self.rl.mode == "one_step_off":
            self.stream.taken -= count
            self.drawn_anew = iteration

    def finish(self, iteration: int, shaper: RewardShaper) -> list[Prompt]:
        """Wait for the responses, which go to the scorers on the way; the iteration's prompts.

        With rl.extra_prompts the rewards, as `shaper` makes them, come first: they decide which
        responses the other scorers see. RuntimeError where they were sampled by other weights than
        the mode says.
        """
        prompts, generation = self.running.pop(iteration)
        self.fixed_responses, self.figures = None, {}
        self.seconds, self.tokens = 0.0, 0
        parts = self._parts(generation, len(prompts), iteration)
        if self.rl.extra_prompts:
            drawn = DrawnGroups(self.actors.reward, shaper, self.rl)
            drawn.add(prompts, parts)
            while missing := drawn.missing():
                further, ids = self.stream.take(missing)
                generation = self.actors.generate(ids, iteration, round_number=drawn.rounds)
                drawn.add(further, self._parts(generation, missing, iteration))
            prompts, rollouts, self.figures = drawn.batch()
            parts = in_parts(rollouts, len(prompts))
        for part in parts:
            # Learners cannot work before the engines have left the GPUs.
            if self.actors.colocation.on:
                self.waiting.append(part)
            else:
                self.actors.scoring.ask(part, prompts, iteration)
        return prompts

    def _parts(
        self, generation: Generation | Arrived, prompts: int, iteration: int
    ) -> Iterator[Rollouts]:
        """The responses to so many prompts, part by part; those to extra ones go aside."""
        # One update old, but in iteration 0, which has no older ones than w0.
        one_step_off = self.rl.mode == "one_step_off" and iteration != self.drawn_anew
        expected = max(0, iteration - 1) if one_step_off else iteration
        for _, part in generation.parts():
            if part.weight_version != expected:
                raise RuntimeError(
                    f"iteration {iteration} was sampled with weight version "
                    f"{part.weight_version}, not {expected}"
                )
            # The engines number extra prompts after the others; see RolloutGroup.stream.
            if part.prompt_index[0] >= prompts:
                self.fixed_responses = replace(part, prompt_index=part.prompt_index - prompts)
            else:
                self.tokens += len(part.responses.values)
                yield part
        # Known only now, after the last part.
        self.seconds += generation.seconds

    @property
    def tokens_per_s(self) -> float:
        """What the engines made for the last `finish`, also of responses that were replaced."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def in_flight(self) -> Generation | Arrived | None:
        """Responses that the engines are sampling; None where they do nothing."""
        return next((generation for _, generation in self.running.values()), None)

    def hand_over(self, prompts: list[Prompt], iteration: int) -> None:
        """Where engines and learners share GPUs: let the learners have them, and ask the scorers
        now.
        """
        self.actors.colocation.to_learners()
        for part in self.waiting:
            self.actors.scoring.ask(part, prompts, iteration)
        self.waiting = []


def in_parts(rollouts: Rollouts, prompts: int) -> Iterator[Rollouts]:
    """The responses to all prompts in the parts in which new ones would come: batches of the same
    rows give the same bits.
    """
    part_of = rollouts.prompt_index // -(-prompts // CHUNKS)
    for part in np.unique(part_of):
        yield rollouts.take(np.flatnonzero(part_of == part))


def replay_files(folder: Path, config: Config) -> list[Path]:
    """The files of a replay, one an iteration. Raises StageError where there are too few."""
    files = sorted(folder.glob("*.parquet"))[: config.rl.iterations]
    if len(files) < config.rl.iterations:
        raise StageError(
            f"{folder} holds the rollouts of {len(files)} iterations, rl.iterations is "
            f"{config.rl.iterations}"
        )
    return files


def replay_digest(folder: Path, config: Config) -> str:
    """SHA-256 of what a replay reads."""
    digest = hashlib.sha256()
    for path in replay_files(folder, config):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Replay:
    """The responses of an earlier stage, or of rayward rl --rollout-only, in place of new ones."""

    # What a Sampler has, and files have not.
    tokens_per_s = 0.0
    figures: Mapping[str, float] = {}
    in_flight: Generation | None = None
    fixed_responses: Rollouts | None = None

    def __init__(self, folder: Path, actors: RlActors):
        self.files, self.actors = replay_files(folder, actors.config), actors
        self.known = {prompt.id: prompt for prompt in prepared(actors.run, "prompts")}

    def begin(self, iteration: int, extra: ExtraPrompts | None = None) -> None:
        """Nothing to sample."""

    def finish(self, iteration: int, shaper: RewardShaper) -> list[Prompt]:
        """Read the responses of a file; their prompts.

        Raises StageError where they are not as many as the config says, or of other prompts.
        """
        rl, path = self.actors.config.rl, self.files[iteration]
        rollouts, ids = rollout_file.read(path)
        samples = np.unique(rollouts.prompt_index, return_counts=True)[1]
        if len(samples) != rl.prompts_per_iteration or set(samples) != {rl.samples_per_prompt}:
            raise StageError(
                f"{path} holds answers to {len(samples)} prompts, {samples.min()} to "
                f"{samples.max()} to each; rl.prompts_per_iteration is "
                f"{rl.prompts_per_iteration}, rl.samples_per_prompt {rl.samples_per_prompt}"
            )
        prompt_of = dict(zip(rollouts.prompt_index.tolist(), ids, strict=True))
        if unknown := [name for name in prompt_of.values() if name not in self.known]:
            raise StageError(f"{path}: prompt {unknown[0]!r} is not in this run's prepare stage")
        prompts = [self.known[prompt_of[index]] for index in sorted(prompt_of)]
        # What models of the earlier stage said of them; ours say it anew. Scores and the engine's
        # log-probs stay.
        unset = dict.fromkeys(
            ("policy_logprobs", "reference_logprobs", "values", "advantages", "returns")
        )
        self.read = rollouts.with_columns(**unset)
        return prompts

    def hand_over(self, prompts: list[Prompt], iteration: int) -> None:
        """Ask the scorers now."""
        self.actors.colocation.to_learners()
        for part in in_parts(self.read, len(prompts)):
            self.actors.scoring.ask(part, prompts, iteration)
