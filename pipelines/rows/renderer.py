"""A chat template with its tokenizer: conversations, prompts and answers to ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from rayward.pipelines.run.stage import Run


@dataclass(frozen=True)
class Renderer:
    """A chat template with its tokenizer and the longest row in tokens."""

    template: Template
    tokenizer: Any
    context_tokens: int

    @classmethod
    def of(cls, model: Model, tokenizer_folder: str | Path) -> Renderer:
        """ValueError if the tokenizer does not fit the template, or gives other ids than its model
        was trained on.
        """
        template, tokenizer = find(model.template), load_tokenizer(tokenizer_folder)
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
        return (
            replace(self, template=quality.conditioned(sft.quality, self.template, record))
            if sft
            else self
        )

    def conversation(self, turns: Sequence[Turn]) -> Encoded:
        return encode(self.template, turns, self.tokenizer)

    def scored(self, turns: Sequence[Turn], finished: bool = True) -> Encoded:
        """As a reward model reads it, up to and with the end token of the last answer, or without
        where it was cut.
        """
        return scored(self.template, turns, self.tokenizer, finished)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        return encode(self.template, turns, self.tokenizer, add_generation_prompt=True).ids

    def asked(self, turns: Sequence[Turn]) -> Encoded:
        """A prompt's row. RowError also where the tokenizer's own template cannot render an answer
        to it.
        """
        if self.template.own:
            self.scored((*turns, Turn("assistant", "Yes.")))
        return encode(self.template, turns, self.tokenizer, add_generation_prompt=True)

    def answer(self, ids: Sequence[int]) -> str:
        """Text of a response's ids, without special tokens and what the template itself writes
        before an answer.
        """
        said, opening = [int(i) for i in ids], opening_ids(self.template, self.tokenizer)
        said = said[len(opening) :] if said[: len(opening)] == opening else said
        return self.tokenizer.decode(said, skip_special_tokens=True).strip()


def answered(renderer: Renderer, prompt: Prompt, answer: str, finished: bool) -> list[int]:
    """Ids of a prompt with an answer of a model, which may be empty or cut, as a reward model reads
    it.

    One that the model's own chat template would rewrite stands there as it was said.
    """
    try:
        ids = renderer.scored((*prompt.turns, Turn("assistant", answer)), finished).ids
    except RowError:
        said = encode_plain(renderer.tokenizer, [answer])[0]
        ids = renderer.prompt(prompt.turns) + said + renderer.stop_token_ids[: int(finished)]
    return ids[: renderer.context_tokens]


def check_vocabulary(tokenizer: Any, model: str) -> None:
    """ValueError if the ids of `tokenizer` would mean other tokens, or none, to the model of this
    folder.
    """

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
    own = load_tokenizer(model).get_vocab()
    for token, number in vocabulary.items():
        if own.get(token) != number:
            told = (
                f"{model} knows {token!r} as token {own.get(token, 'none')}, but the tokenizer "
                f"gives it id {number}"
            )
            raise ValueError(f"{told}; {fix}")
