"""Token ids of a conversation in the tokenizer's own chat template.

They are those of the whole rendered string (`apply_chat_template`, vLLM's chat endpoint), with two
exceptions, in which a stretch between two special tokens is encoded in pieces:
* An answer that begins with white space may merge with what stands before it, so that no prompt
  would be a prefix of the row. Where the whole string does not keep the prompt's ids, the prompt is
  encoded, and the answer alone after it.
* A special token that somebody writes stays text. In the whole string it would be read as one.

Tokenizers find special tokens first and encode what stands between them by itself; so a stretch is
compared with the same stretch up to where the answer begins. The special tokens that the whole
string gave are compared with those that the template wrote, and where they are others all stretches
are encoded in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rayward.data.records import RowError, Turn
from rayward.data.templates.plain_text import encode_plain, habit, says_unknown, special_ids
from rayward.data.templates.published.form import Stretch, Text
from rayward.data.templates.published.template import own_form, own_opening, until_end
from rayward.data.templates.special_tokens import own_special_tokens, specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Row(NamedTuple):
    """Ids, loss weights, and whether a stretch was encoded in pieces."""

    ids: list[int]
    weights: list[float]
    apart: bool


def own_row(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    prompt: bool = False,
    tools: str | None = None,
) -> Row:
    """The row of a conversation; of a prompt up to where its answer starts. Raises as `own_form`.

    An assistant turn's weight (1 if it has none) holds for its answer with its reasoning and calls,
    another turn's for what it says.
    """
    form, contents = own_form(tokenizer, turns, prompt, tools)
    return _rows(tokenizer, [_Whole(tokenizer, turns, form.stretches, contents)])[0]


def own_rows(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[Sequence[Turn], str | None]],
) -> list[Row | RowError]:
    """The row of each conversation with its tools, or why there is none."""
    wholes: list[_Whole | RowError] = []
    for turns, tools in conversations:
        try:
            form, contents = own_form(tokenizer, turns, False, tools)
            wholes.append(_Whole(tokenizer, turns, form.stretches, contents))
        except RowError as error:
            wholes.append(error)
    rows = iter(_rows(tokenizer, [whole for whole in wholes if isinstance(whole, _Whole)]))
    return [whole if isinstance(whole, RowError) else next(rows) for whole in wholes]


def own_scored_row(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    finished: bool,
    tools: str | None = None,
) -> Row:
    """The row of a conversation up to and with the token that ends its last answer.

    Not `finished`: up to what it says there. Raises as `own_form`.
    """
    form, contents = own_form(tokenizer, turns, False, tools)
    stretches = until_end(form, len(turns) - 1, finished)
    return _rows(tokenizer, [_Whole(tokenizer, turns, stretches, contents)])[0]


def own_opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of `own_opening`."""
    opening = own_opening(tokenizer)
    return _cached(tokenizer, opening) if opening else []


def _rows(tokenizer: PreTrainedTokenizerBase, wholes: Sequence[_Whole]) -> list[Row]:
    """One call of the tokenizer, which spreads many strings over the processor's cores."""
    encoded = _encode(tokenizer, [whole.string for whole in wholes])
    return [whole.row(ids) for whole, ids in zip(wholes, encoded, strict=True)]


class _Whole:
    """A rendered `string`, and the row that it becomes.

    Stretches in which somebody writes special tokens are left out of it: they would be read.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        turns: Sequence[Turn],
        stretches: Sequence[Stretch],
        contents: Sequence[str],
    ) -> None:
        self.tokenizer, self.turns, self.stretches = tokenizer, turns, stretches
        self.contents = contents
        tokens = own_special_tokens(tokenizer)
        self.special_ids, self.counted = _ids(tokenizer, tokens)
        find = specials(tokens).find
        texts = [self._text(stretch.head + (stretch.tail or ())) for stretch in stretches]
        # Special tokens in it that are not the template's.
        self.written = [bool(find(text)) for text in texts]
        self.string = "".join(
            stretch.special if written else text + stretch.special
            for text, stretch, written in zip(texts, stretches, self.written, strict=True)
        )
        # Ids of each stretch of the string; None where its special tokens are not the template's.
        self.slices: list[list[int]] | None = None
        self.apart = any(self.written)

    def row(self, string_ids: list[int]) -> Row:
        """The row, given the ids of the string."""
        places = [place for place, token in enumerate(string_ids) if token in self.counted]
        expected = [
            self.special_ids[stretch.special] for stretch in self.stretches if stretch.special
        ]
        # Tokenizers split at special tokens first, so equal ones cut string and ids alike.
        if [string_ids[place] for place in places] == expected:
            cuts = (-1, *places, len(string_ids))
            self.slices = [string_ids[first + 1 : last] for first, last in pairwise(cuts)]
        ids: list[int] = []
        weights: list[float] = []
        for number, stretch in enumerate(self.stretches):
            head_ids, tail_ids = self.ids(number)
            answer = 0.0 if stretch.answer is None else self.turns[stretch.answer].loss_weight
            # With a tail the head belongs to the prompt of the answer that begins there.
            head_weights = [answer if stretch.tail is None else 0.0] * len(head_ids)
            for place, part in enumerate(stretch.head):
                # Of reasoning, whose numbers come after those of all turns, the assistant's.
                turn = self.turns[part % len(self.turns)] if isinstance(part, int) else None
                if turn and turn.role != "assistant" and turn.loss_weight:
                    first = self.reach(number, place, head_ids)
                    last = self.reach(number, place + 1, head_ids)
                    head_weights[first:last] = [turn.loss_weight] * (last - first)
            end_ids = [self.special_ids[stretch.special]] if stretch.special else []
            ids += head_ids + tail_ids + end_ids
            weights += head_weights + [answer] * len(tail_ids + end_ids)
        return Row(ids, weights, self.apart)

    def ids(self, number: int) -> tuple[list[int], list[int]]:
        """Ids of the head of a stretch and of its tail, without the special token that follows."""
        stretch = self.stretches[number]
        whole = None if self.slices is None or self.written[number] else self.slices[number]
        if stretch.tail is None and whole is not None:
            return whole, []
        head_ids = self._beginning(number, stretch.head)
        if stretch.tail is None:
            return head_ids, []
        # The prefix property: the ids of the prompt begin the row. Where a token of the whole
        # string lies across the edge, the answer is encoded by itself.
        if whole is not None and whole[: len(head_ids)] == head_ids:
            return head_ids, whole[len(head_ids) :]
        self.apart = True
        if not stretch.tail:
            return head_ids, []
        return head_ids, self._alone(self._text(stretch.tail), bool(stretch.head))

    def reach(self, number: int, end: int, head_ids: list[int]) -> int:
        """How many of a head's ids its first `end` parts make by themselves.

        A token across the edge counts as what follows: it stands behind the first difference.
        """
        part_ids = self._beginning(number, self.stretches[number].head[:end])
        same = (one == other for one, other in zip(part_ids, head_ids, strict=False))
        return next(
            (place for place, equal in enumerate(same) if not equal),
            min(len(part_ids), len(head_ids)),
        )

    def _beginning(self, number: int, parts: Text) -> list[int]:
        """Ids of the beginning of a stretch, as in a string that ends there.

        Encoded with the special token before it (the anchor), which decides about a space behind.
        """
        anchor = self.stretches[number - 1].special if number else ""
        text = self._text(parts)
        # The template's own text alone is the same in every row: generation prompts, for instance.
        if all(isinstance(part, str) for part in parts):
            ids = _cached(self.tokenizer, anchor + text)
        else:
            ids = _encode(self.tokenizer, [anchor + text])[0]
        after = ids[1:] if anchor else ids
        anchored = not anchor or ids[:1] == [self.special_ids[anchor]]
        # The unknown token's own string is read as that token, which other text may become too: so
        # the text is searched, and not only its ids.
        written = self.written[number] and bool(
            specials(own_special_tokens(self.tokenizer)).find(text)
        )
        if anchored and not written and self.counted.isdisjoint(after):
            return after
        return self._unread(anchor, text)

    def _unread(self, anchor: str, text: str) -> list[int]:
        """As `_beginning` of a text in which somebody writes a special token, which stays text.

        What stands before that is read as ever: an anchor may take the white space that follows it
        (Phi-3), and a space may be put before the first text of a string alone.
        """
        whole = self._alone(text, False)
        spans = specials(own_special_tokens(self.tokenizer)).find(text)
        if not anchor or not spans:
            return whole
        before = text[: spans[0][0]]
        alone = self._alone(before, False)
        read = _encode(self.tokenizer, [anchor + before])[0]
        kept = whole[: len(alone)] == alone and read[:1] == [self.special_ids[anchor]]
        return read[1:] + whole[len(alone) :] if kept else whole

    def _alone(self, text: str, follows: bool) -> list[int]:
        """Ids of a text in which nothing is special; `follows`: it goes on where another ends."""
        strips = follows and habit(self.tokenizer) == "always"  # which puts the space there again
        return encode_plain(self.tokenizer, [text.removeprefix(" ") if strips else text])[0]

    def _text(self, parts: Text) -> str:
        return "".join(part if isinstance(part, str) else self.contents[part] for part in parts)


@lru_cache(maxsize=64)
def _ids(
    tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]
) -> tuple[dict[str, int], frozenset[int]]:
    """Ids of special tokens, and those of them that no other text has.

    The unknown token may stand for many texts.
    """
    ids = special_ids(tokenizer, tokens, "tokenizer")
    shared = {tokenizer.unk_token_id} if says_unknown(tokenizer) else set()
    return ids, frozenset(ids.values()) - shared


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    arguments = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(texts, **arguments)["input_ids"] if texts else []


@lru_cache(maxsize=1024)
def _cached(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _encode(tokenizer, [text])[0]
