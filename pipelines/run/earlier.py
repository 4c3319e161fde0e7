"""Runs that an earlier version began: where this one would make their rows otherwise, and what to
make again.

A manifest says by `rows` how its stage's rows were made; those up to commit c0eebdd say nothing.
Such a run goes on, unless what has changed since concerns its template and tokenizer: then it stops
before old and new rows are mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.configs.sections.model import Model
from rayward.data.records import RowError, Turn
from rayward.data.templates.plain_text import encode_plain, habit
from rayward.data.templates.saved_tokenizer import mend
from rayward.data.templates.scored import scored
from rayward.data.templates.special_tokens import own_special_tokens, specials
from rayward.data.templates.template import Encoded, Template, encode, find, needs_bos
from rayward.data.templates.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 1
"""How rows are made now; goes up with each change of ids, weights or ends, with a check below."""

# Conversations on which templates show their differences: several turns, line breaks and spaces at
# the edges of a text, and characters of more than one token.
PROBES = (
    (
        Turn("user", "Hello there"),
        Turn("assistant", "Hi, you."),
        Turn("user", "And 12?"),
        Turn("assistant", "Yes."),
    ),
    (Turn("user", "\nWhy?\n"), Turn("assistant", " 日本 ")),
)
PROBE = PROBES[0]


def outdated(stage: str, manifest: Mapping[str, Any], model: Model, tokenizer_folder: Path) -> str:
    """Why the rows of a finished stage are not those that this version would make; "" where they
    are.

    A tokenizer that transformers then saved otherwise than it was is mended: its rows are as they
    were.
    """
    if (
        manifest.get("rows", 0) >= ROWS
        or stage not in ("prepare", "reward")
        or not tokenizer_folder.is_dir()
    ):
        return ""
    template = find(model.template)
    # Before the tokenizer is loaded: it changes the folder's files.
    if stage == "prepare" and (change := mend(template, tokenizer_folder)):
        print(f"   {tokenizer_folder} is served otherwise than its rows are trained: {change}")
    tokenizer = load_tokenizer(tokenizer_folder)
    if stage == "prepare":
        return ids_differ(template, tokenizer)
    return ends_differ(template, tokenizer)


def ids_differ(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """Of prepare, whose tokenizer and template all stages take."""
    if template.bos and tokenizer.bos_token_id is not None and not needs_bos(template, tokenizer):
        return (
            f"chat template {template.name} put {tokenizer.bos_token!r} before every row twice "
            "then, once now"
        )
    for turns in PROBES if template.is_tokenizers else ():
        try:
            row = encode(template, turns, tokenizer)
        except RowError:
            continue  # such rows are left out
        if own_row_then(tokenizer, turns) != row:
            return (
                "the tokenizer's own chat template gave rows other ids then, or trained other "
                "tokens of them"
            )
    return ""


def ends_differ(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """Of reward, whose rows ended where the text did; now they end at the end token."""
    if encode(template, PROBE, tokenizer).ids == scored(template, PROBE, tokenizer).ids:
        return ""
    return (
        f"chat template {template.name} writes more after the end token: there scored rows ended "
        "then, at it now"
    )


def own_row_then(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> Encoded:
    """The row that c0eebdd made of turns without special tokens.

    `{% generation %}` told what is trained, and what stood between special tokens and its edges was
    encoded by itself.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), (spans,) = render_jinja_template(
        conversations=[[{"role": turn.role, "content": turn.content} for turn in turns]],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    # Start to end of each special token. Text is cut there, and where training begins or ends:
    # each part was encoded by itself, so no token lay across an edge.
    marks = dict(specials(own_special_tokens(tokenizer)).find(text))
    edges = sorted(
        {0, len(text), *marks, *marks.values(), *(edge for span in spans for edge in span)}
    )
    ids: list[int] = []
    weights: list[float] = []
    after_text = False
    for start, end in pairwise(edges):
        part, special = text[start:end], marks.get(start) == end
        if special:
            part_ids = [tokenizer.convert_tokens_to_ids(part)]
        else:
            # Such a tokenizer puts a space before every text: the text's own would be a second one.
            strips = after_text and habit(tokenizer) == "always"
            part_ids = encode_plain(tokenizer, [part.removeprefix(" ") if strips else part])[0]
        after_text = not special
        ids += part_ids
        weights += [float(any(first <= start < last for first, last in spans))] * len(part_ids)
    return Encoded(ids, weights)
