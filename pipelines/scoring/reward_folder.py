"""A reward model's folder behind one call, whatever its tokenizer and template.

One that reads the run's token ids gets those that were sampled. To another, a published one for
instance, the conversation is rendered anew with its own tokenizer and chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rayward.actors.frozen_groups import RewardGroup, reward_group
from rayward.actors.models.prefix import group_sizes
from rayward.actors.scoring.sources import Score
from rayward.data.model_files.folder import positions
from rayward.data.model_files.hub_models import config_of
from rayward.data.ragged import Ragged, merge
from rayward.data.records import Prompt, RowError, Turn
from rayward.data.rollouts import Rollouts
from rayward.data.templates.behaviour import SYSTEM
from rayward.data.templates.published.template import PROBE
from rayward.data.templates.template import find
from rayward.data.templates.tokenizer import load_tokenizer
from rayward.pipelines.rows.renderer import Renderer, scored_ids
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run, model_folder

UNBOUNDED = 1 << 30
"""Tokens that a model reads at once whose config names no limit."""


@dataclass(frozen=True)
class PendingScores:
    """Calls of the scores of `rows`, those of `count` responses that the model can read; of the
    others, by row, why not.
    """

    calls: list[ray.ObjectRef]
    rows: list[int]
    count: int
    why: dict[int, str]


class RewardFolder:
    """The actors of a reward model. StageError for a folder that holds none, with the `setting`
    that names it.

    `made`: by this run, so it reads the run's ids whatever its folder says. `renderer`: the run's.
    `seats`: as `Group` takes them.
    """

    def __init__(
        self,
        folder: str | Path,
        run: Run,
        renderer: Renderer,
        setting: str,
        made: bool = False,
        seats: Sequence[Any] | None = None,
    ):
        folder = model_folder(folder, setting)
        self.reads_ids = made or reads_ids_of(folder, renderer, setting)
        self.renderer = renderer if self.reads_ids else own_renderer(folder, setting)
        # Sampled ids become text by the tokenizer that they are of.
        self.renderer_of_run = renderer
        self.longest = positions(config_of(folder)) or UNBOUNDED
        self.group: RewardGroup = reward_group(str(folder), run.config, seats)

    def begin(self, rollouts: Rollouts, prompts: Sequence[Prompt]) -> PendingScores:
        """Ask for the scores of responses; `prompts` are those that `prompt_index` counts."""
        count = len(rollouts)
        # The ids that were sampled: text need not give the same again. The group sizes let the
        # model compute a prompt once for all its responses.
        if self.reads_ids:
            calls = self.group.begin("score", ray.put(rollouts.sequences()), group_sizes(rollouts))
            return PendingScores(calls, list(range(count)), count, {})
        prompt_of_row = [prompts[index] for index in rollouts.prompt_index]
        texts = [self.renderer_of_run.answer(rollouts.responses[row]) for row in range(count)]
        return self.begin_texts(prompt_of_row, texts, [bool(ended) for ended in rollouts.finished])

    def begin_texts(
        self, prompts: Sequence[Prompt], answers: Sequence[str], finished: Sequence[bool]
    ) -> PendingScores:
        """Ask for the scores of answers that are text, one to each prompt."""
        ids: dict[int, list[int]] = {}
        why: dict[int, str] = {}
        for row, (prompt, answer, ended) in enumerate(zip(prompts, answers, finished, strict=True)):
            try:
                row_ids = scored_ids(self.renderer, prompt, answer, ended)
            except RowError as error:
                why[row] = f"its chat template cannot render the conversation: {error}"
                continue
            # Cut, it would be the score of another conversation.
            if len(row_ids) > self.longest:
                why[row] = f"a conversation of {len(row_ids)} tokens, and it reads {self.longest}"
                continue
            ids[row] = row_ids
        # No call of no rows: there may be nothing that it can read.
        calls = self.group.begin("score", ray.put(Ragged.of(list(ids.values())))) if ids else []
        return PendingScores(calls, list(ids), len(prompts), why)

    def finish(self, pending: PendingScores) -> list[Score]:
        """The score of each response, or why there is none."""
        scores: list[Score] = [pending.why.get(row) for row in range(pending.count)]
        if pending.rows:
            values = merge(self.group.finish(pending.calls), len(pending.rows)).tolist()
            for row, value in zip(pending.rows, values, strict=True):
                scores[row] = value if np.isfinite(value) else f"the reward model says {value}"
        return scores

    def score(self, rollouts: Rollouts, prompts: Sequence[Prompt]) -> np.ndarray:
        """`begin` and `finish`; NaN where there is no score."""
        return numbers(self.finish(self.begin(rollouts, prompts)))


def numbers(scores: Sequence[Score]) -> np.ndarray:
    """[B] scores, fp32, NaN where there is none."""
    return np.array(
        [score if isinstance(score, float) else np.nan for score in scores], dtype=np.float32
    )


def reads_ids_of(folder: Path, renderer: Renderer, setting: str) -> bool:
    """Whether the model of a folder reads the run's token ids: it has the tokenizer, and its
    template or none.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.get_vocab() != renderer.tokenizer.get_vocab():
        return False
    if not tokenizer.chat_template:
        return True
    of_model = Renderer(find("tokenizer"), tokenizer, renderer.context_tokens)
    try:
        # Templates are programs: that two are the same shows on what they make. One with a system
        # message too, where templates differ that agree elsewhere.
        return all(same_row(of_model, renderer, turns) for turns in (PROBE, (SYSTEM, *PROBE)))
    except ValueError as error:
        print(
            f"   {setting} {folder} gets conversations in the run's chat template, its own cannot "
            f"be used: {error}"
        )
        return True


def same_row(of_model: Renderer, of_run: Renderer, turns: Sequence[Turn]) -> bool:
    """Whether two renderers make the same row of a conversation, or neither can. ValueError where
    `of_model` cannot be used at all.
    """
    rows: list[list[int] | None] = []
    for renderer in (of_model, of_run):
        try:
            rows.append(renderer.scored(turns).ids)
        except RowError:
            rows.append(None)
    return rows[0] == rows[1]


def own_renderer(folder: Path, setting: str) -> Renderer:
    """The renderer of a folder's own tokenizer and chat template. StageError where it has none."""
    # Without a limit: rows are held against the model's own in `begin_texts`.
    renderer = Renderer(find("tokenizer"), load_tokenizer(folder), UNBOUNDED)
    if not renderer.tokenizer.chat_template:
        raise StageError(
            f"{folder} ({setting}) has another tokenizer than the run and no chat template to "
            "render conversations with: put the one that it was trained with there, as "
            "chat_template.jinja"
        )
    try:
        # Now, and not at the first response after hours of training.
        renderer.scored(PROBE)
    except ValueError as error:
        raise StageError(
            f"{folder} ({setting}) has another tokenizer than the run, so conversations are "
            f"rendered with its own chat template, and that cannot be: {error}"
        ) from error
    return renderer


def check_same_tokens(folder: str | Path, renderer: Renderer, setting: str, instead: str) -> str:
    """The folder of a model that reads the run's token ids. StageError, with what to do `instead`,
    for another.
    """
    folder = model_folder(folder, setting)
    if load_tokenizer(folder).get_vocab() != renderer.tokenizer.get_vocab():
        raise StageError(
            f"{folder} ({setting}) has another tokenizer than the run, whose ids it would read; "
            f"{instead}"
        )
    return str(folder)
