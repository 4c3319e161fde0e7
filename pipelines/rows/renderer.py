"""A chat template with its tokenizer: conversations, prompts and answers to ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayward.configs.sections.model import Model
from rayward.configs.sections.training import Sft
from rayward.data.model_files.folder import has_tokenizer
from rayward.data.model_files.hub_models import config_of
from rayward.data.records import Conversation, Prompt, RowError, Turn
from rayward.data.templates.known_ids import assert_known_ids
from rayward.data.templates.plain_text import encode_plain
from rayward.data.templates.scored import scored
from rayward.data.templates.template import (
    Encoded,
    Template,
    encode,
    find,
    opening_ids,
    stop_token_ids,
)
from rayward.data.templates.tokenizer import load_tokenizer
from rayward.pipelines.rows import quality
from rayward.pipelines.run.folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Renderer:
    """A chat template with its tokenizer and the longest row in tokens."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    context_tokens: int

    @classmethod
    def of(cls, model: Model, tokenizer_folder: str | Path) -> Renderer:
        """ValueError if the tokenizer does not fit the template, or the ids its model knows."""
        template = find(model.template)
        tokenizer = load_tokenizer(tokenizer_folder)
        assert_known_ids(template, tokenizer)
        return cls(template, tokenizer, model.context_tokens)

    @classmethod
    def of_run(cls, run: Run) -> Renderer:
        """With the tokenizer of the run's prepare stage."""
        return cls.of(run.config.model, run.folder / "prepare" / "tokenizer")

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        return stop_token_ids(self.template, self.tokenizer)

    def of_class(self, record: Conversation, sft: Sft | None) -> Renderer:
        """The renderer that speaks of the class of this conversation (C-RLFT)."""
        if sft is None:
            return self
        return replace(self, template=quality.conditioned(sft.quality, self.template, record))

    def conversation(self, turns: Sequence[Turn], tools: str | None = None) -> Encoded:
        """As it is trained: ids, and the loss weight of each."""
        return encode(self.template, turns, self.tokenizer, tools=tools)

    def scored(
        self, turns: Sequence[Turn], finished: bool = True, tools: str | None = None
    ) -> Encoded:
        """As a reward model reads it: to the end token of the last answer, if it was not cut."""
        return scored(self.template, turns, self.tokenizer, finished, tools)

    def prompt(self, turns: Sequence[Turn], tools: str | None = None) -> list[int]:
        """Ids up to where an answer begins."""
        return encode(self.template, turns, self.tokenizer, True, tools).ids

    def prompt_row(self, turns: Sequence[Turn], tools: str | None = None) -> Encoded:
        """A prompt's row. RowError also where its own template cannot render an answer to it."""
        # Such a template is a program: it may take the prompt and refuse what has an answer to it.
        # Better now, where the prompt is counted, than when its sampled answers are scored.
        if self.template.is_tokenizers:
            self.scored((*turns, Turn("assistant", "Yes.")), tools=tools)
        return encode(self.template, turns, self.tokenizer, True, tools)

    def answer(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of a response's ids, without special tokens and what the template writes first."""
        answer = [int(i) for i in ids]
        opening = opening_ids(self.template, self.tokenizer)
        if answer[: len(opening)] == opening:
            answer = answer[len(opening) :]
        text: str = self.tokenizer.decode(answer, skip_special_tokens=True)
        return text.strip()


def scored_ids(renderer: Renderer, prompt: Prompt, answer: str, finished: bool) -> list[int]:
    """Ids of a prompt with an answer of a model, which may be empty or cut, as a reward model reads
    it.

    One that the model's own chat template would rewrite stands there as it was said.
    """
    try:
        turns = (*prompt.turns, Turn("assistant", answer))
        ids = renderer.scored(turns, finished, prompt.tools).ids
    except RowError:
        # The first stop token is the template's end of an answer; a cut answer has none.
        answer_ids = encode_plain(renderer.tokenizer, [answer])[0]
        prompt_ids = renderer.prompt(prompt.turns, prompt.tools)
        ids = prompt_ids + answer_ids + renderer.stop_token_ids[: int(finished)]
    return ids[: renderer.context_tokens]


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """ValueError if the ids of `tokenizer` mean other tokens, or none, to the model of a folder."""
    # Of the part that reads text: the config of a model for images too has it inside.
    size = config_of(model).get_text_config().vocab_size
    fix = (
        "use the tokenizer that the model was trained with, or rayward extend to add tokens to "
        "the model"
    )
    vocabulary = tokenizer.get_vocab()
    if (highest := max(vocabulary.values())) >= size:
        raise ValueError(
            f"{model} has embeddings for {size} tokens, but the tokenizer gives ids up to "
            f"{highest}; {fix}"
        )
    if not has_tokenizer(Path(model)):
        return
    # The model may know more tokens, as one whose embeddings were extended does.
    known = load_tokenizer(model).get_vocab()
    for token, token_id in vocabulary.items():
        if known.get(token) != token_id:
            raise ValueError(
                f"{model} knows {token!r} as token {known.get(token, 'none')}, but the tokenizer "
                f"gives it id {token_id}; {fix}"
            )
