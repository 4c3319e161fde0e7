"""Where the answers of an RL iteration come from: drawn by the rollout engines now, or read from
files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from rayward.actors.group import ExtraPrompts
from rayward.actors.rollout.generation import Generation
from rayward.configs.schema import Config
from rayward.data import rollout_file
from rayward.data.packing import epoch_order
from rayward.data.ragged import Ragged
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.rl_actors import PARTS, RlActors
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.rows import fit_prompts, prepared
from rayward.pipelines.run.stage import Run, StageError


class PromptStream:
    """Training prompts in a shuffled order that depends on the seed alone; each pass over them has
    its own.
    """

    def __init__(self, run: Run, renderer: Renderer):
        longest = run.config.rollout.max_new_tokens
        self.prompts, self.ids = fit_prompts(prepared(run, "prompts"), renderer, longest, Counter())
        self.seed, self.size = run.config.seed, run.config.rl.prompts_per_iteration

    def take(self, iteration: int) -> tuple[list[Prompt], Ragged]:
        """The prompts of an iteration, and their token ids."""
        rows = []
        for position in range(iteration * self.size, (iteration + 1) * self.size):
            pass_number, place = divmod(position, len(self.ids))
            rows.append(epoch_order(len(self.ids), self.seed, pass_number)[place])
        return [self.prompts[row] for row in rows], self.ids.take(rows)


class Sampler:
    """New answers, each part of which goes to be scored as soon as it is complete."""

    def __init__(self, actors: RlActors):
        self.actors, self.stream = actors, PromptStream(actors.run, actors.renderer)
        self.running: dict[int, tuple[list[Prompt], Generation]] = {}
        self.waiting: list[Rollouts] = []
        # Answers to the prompts beside those of the last `finish`.
        self.beside: Rollouts | None = None
        self.seconds = 0.0  # that the engines took for the answers of the last `finish`

    def begin(self, iteration: int, beside: ExtraPrompts | None = None) -> None:
        """Start to draw the answers of an iteration, and those `beside` them, unless that has
        begun.
        """
        if iteration not in self.running:
            prompts, ids = self.stream.take(iteration)
            self.running[iteration] = (prompts, self.actors.generate(ids, iteration, beside))

    def finish(self, iteration: int) -> list[Prompt]:
        """Wait for the answers, which are asked about on the way; the iteration's prompts.
        `hand_over` comes after it.

        Raises RuntimeError where they were sampled by other weights than the mode says.
        """
        prompts, generation = self.running.pop(iteration)
        off = self.actors.config.rl.mode == "one_step_off"
        expected = max(0, iteration - 1) if off else iteration
        self.beside = None
        for _, part in generation.parts():
            if part.weight_version != expected:
                raise RuntimeError(
                    f"iteration {iteration} was sampled with weight version "
                    f"{part.weight_version}, not {expected}"
                )
            if part.prompt_index[0] >= len(prompts):
                self.beside = replace(part, prompt_index=part.prompt_index - len(prompts))
            elif self.actors.colocation.on:
                self.waiting.append(part)
            else:
                self.actors.ask(part, prompts, iteration)
        self.seconds = generation.seconds
        return prompts

    @property
    def ahead(self) -> Generation | None:
        """Answers on their way."""
        return next((generation for _, generation in self.running.values()), None)

    def hand_over(self, prompts: list[Prompt], iteration: int) -> None:
        """Where engines and learners share GPUs: let the learners have them, and ask about the
        answers now.
        """
        self.actors.colocation.to_learners()
        for part in self.waiting:
            self.actors.ask(part, prompts, iteration)
        self.waiting = []


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
    found = hashlib.sha256()
    for path in replay_files(folder, config):
        found.update(path.read_bytes())
    return found.hexdigest()


class Replay:
    """The answers of an earlier stage, or of rayward rl --rollout-only, in place of new ones."""

    seconds, ahead, beside = 0.0, None, None

    def __init__(self, folder: Path, actors: RlActors):
        self.files, self.actors = replay_files(folder, actors.config), actors
        self.known = {prompt.id: prompt for prompt in prepared(actors.run, "prompts")}

    def begin(self, iteration: int, beside: ExtraPrompts | None = None) -> None:
        """Nothing to draw."""

    def finish(self, iteration: int) -> list[Prompt]:
        """Read the answers of a file; their prompts.

        Raises StageError where they are not as many as the config says, or of other prompts.
        """
        rl, path = self.actors.config.rl, self.files[iteration]
        rollouts, ids = rollout_file.read(path)
        each = np.unique(rollouts.prompt_index, return_counts=True)[1]
        if len(each) != rl.prompts_per_iteration or set(each) != {rl.samples_per_prompt}:
            raise StageError(
                f"{path} holds answers to {len(each)} prompts, {each.min()} to {each.max()} to "
                f"each; rl.prompts_per_iteration is {rl.prompts_per_iteration}, "
                f"rl.samples_per_prompt {rl.samples_per_prompt}"
            )
        prompt_of = dict(zip(rollouts.prompt_index.tolist(), ids, strict=True))
        if unknown := [name for name in prompt_of.values() if name not in self.known]:
            raise StageError(f"{path}: prompt {unknown[0]!r} is not in this run's prepare stage")
        prompts = [self.known[prompt_of[index]] for index in sorted(prompt_of)]
        sampled = dict.fromkeys(
            ("policy_logprobs", "reference_logprobs", "values", "advantages", "returns")
        )
        self.read = rollouts.with_columns(**sampled)
        return prompts

    def hand_over(self, prompts: list[Prompt], iteration: int) -> None:
        """Ask about the answers, in the parts in which new ones would come."""
        self.actors.colocation.to_learners()
        part_of = self.read.prompt_index // -(-len(prompts) // PARTS)
        for part in np.unique(part_of):
            self.actors.ask(self.read.take(np.flatnonzero(part_of == part)), prompts, iteration)
