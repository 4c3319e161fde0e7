"""A run's tokenizer: trained or the model's own, with the chat template, saved as it is served.

What is served must be what is trained: whoever opens the saved folder and renders a chat with its
template gets the ids that the run trained on, and stops where an answer ended there.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.configs.schema import Config
from rayward.configs.sections.model import Model
from rayward.data.model_files.hub_models import config_of, local
from rayward.data.records import Conversation, Labelled, Ranking, Turn, parts_of
from rayward.data.templates.behaviour import SYSTEM, behaviour, unlike_own
from rayward.data.templates.jinja import jinja
from rayward.data.templates.pieces import text
from rayward.data.templates.published.program import DATE, TODAY
from rayward.data.templates.published.rendering import render
from rayward.data.templates.published.template import PROBE
from rayward.data.templates.saved_tokenizer import (
    assert_keeps_text,
    assert_served_as_trained,
    save_tokenizer,
)
from rayward.data.templates.special_tokens import own_special_tokens
from rayward.data.templates.template import Template, end_token, find, stop_token_ids
from rayward.data.templates.tokenizer import give_pad, tokenizer_of, train_tokenizer
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_renderer(
    config: Config,
    folder: Path,
    conversations: list[Conversation],
    preferences: list[Ranking | Labelled],
) -> tuple[Renderer, dict[str, Any]]:
    """Train or load the tokenizer, give it the chat template and its end token, and save it.

    Also returns the report's entry on the template; its notes are printed. StageError where what is
    served would not be what is trained.
    """
    template = find(config.model.template)
    path = local(config.model.path) if config.model.path else None
    notes: list[str] = []
    if config.model.scratch:
        # With the template's own text around: it is in every row, and worth tokens of its own.
        texts = itertools.chain(
            (text(template, c.turns) for c in conversations if _is_text(c)),
            (
                text(template, (*record.turns, Turn("assistant", answer)))
                for record in preferences
                if _is_text(record)
                for answer in ((record.answer,) if isinstance(record, Labelled) else record.answers)
            ),
        )
        tokenizer = train_tokenizer(
            texts,
            config.model.scratch.vocab_size,
            template.special_tokens,
            config.model.context_tokens,
        )
    else:
        assert path is not None
        tokenizer, read = tokenizer_of(path)
        _require_end_token(config.model, path, template, tokenizer)
        # Of the tokenizer as it came: the lines below change it.
        habits = (
            behaviour(tokenizer) if template.is_tokenizers else [unlike_own(template, tokenizer)]
        )
        changes = _make_special(template, tokenizer)
        notes = [*([f"the tokenizer: {read}"] if read else []), *changes, *filter(None, habits)]
        _set_end_token(template, tokenizer)
        # Padding must be none of the tokens that end an answer: a pad would be learned, or would
        # hide an end.
        give_pad(tokenizer, path, stop_token_ids(template, tokenizer))
    for line in notes:
        print(f"   chat template {template.name}: {line}", flush=True)
    if not template.is_tokenizers:
        tokenizer.chat_template = jinja(template, tokenizer)
    try:
        assert_keeps_text(tokenizer)
        save_tokenizer(tokenizer, folder / "tokenizer", config_of(path) if path else None)
        # As it is read back: all other stages, and vLLM, take it from this folder.
        renderer = Renderer.of(config.model, folder / "tokenizer")
        assert_served_as_trained(template, renderer.tokenizer)
    except ValueError as error:
        raise StageError(f"model.path {path}: {error}" if path else str(error)) from error
    return renderer, {"name": template.name, "ends": end_token(template, tokenizer), "told": notes}


def _is_text(record: Conversation | Ranking | Labelled) -> bool:
    """Whether templates of the table have a place for all of it; else no row is made of it."""
    return not any(parts_of(record.turns, record.tools))


def _make_special(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Make the tokens special that a template of the table needs so; a note on it, or none.

    For the run only: else who writes one in a message speaks as the template does.
    """
    if template.is_tokenizers:
        return []
    special = {*own_special_tokens(tokenizer)}
    open_tokens = [token for token in template.special_tokens if token not in special]
    if not open_tokens:
        return []
    # Beside those that it has, which else would become ordinary.
    tokenizer.add_special_tokens(
        {"extra_special_tokens": open_tokens}, replace_extra_special_tokens=False
    )
    return [
        f"{', '.join(map(repr, open_tokens))} become special in the run: the tokenizer holds them "
        "as ordinary ones"
    ]


def _set_end_token(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make what ends an answer the tokenizer's end token, and pin the day that its own template
    writes.

    A template that writes the end token of the model's folder elsewhere (Phi-3's, after the last
    turn) keeps it.
    """
    end = end_token(template, tokenizer)
    if not template.is_tokenizers:
        tokenizer.eos_token = end
        return
    if "strftime_now" in tokenizer.get_chat_template():
        # Else the rows of a run that goes on tomorrow would hold another date.
        tokenizer.init_kwargs[DATE] = TODAY
    published, before = tokenizer.eos_token, _renderings(tokenizer)
    tokenizer.eos_token = end
    # The template reads eos_token: with another one it would write other text than the model's.
    if _renderings(tokenizer) != before:
        tokenizer.eos_token = published


def _renderings(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """What the tokenizer's own template makes of a few conversations, None where it raises."""
    texts: list[str | None] = []
    for turns in (PROBE[:2], PROBE, (SYSTEM, *PROBE[:2])):
        try:
            texts.append(render(tokenizer, turns, [turn.content for turn in turns], False))
        # A template is a foreign program: it raises what it likes, at a system turn for instance.
        except Exception:
            texts.append(None)
    return texts


def _require_end_token(
    model: Model, path: str, template: Template, tokenizer: PreTrainedTokenizerBase
) -> None:
    """StageError where the model of a folder has no embedding for a token that ends an answer."""
    try:
        ends = stop_token_ids(template, tokenizer)
    except ValueError as error:
        hint = ""
        if tokenizer.chat_template:
            hint = "; or take the model's own: model.template: tokenizer"
        raise StageError(
            f"model.path {model.path}, model.template {model.template}: {error}{hint}"
        ) from error
    # A tokenizer may hold more tokens than its model has embeddings.
    rows = config_of(path).get_text_config().vocab_size
    if (end := max(ends)) >= rows:
        raise StageError(
            f"model.path {model.path}: {tokenizer.convert_ids_to_tokens(end)!r}, which ends an "
            f"answer of {model.template}, is token {end}, but the model has {rows} embeddings; "
            f"rayward extend {model.path} --template {model.template} --out DIR makes a model "
            "that has it"
        )
