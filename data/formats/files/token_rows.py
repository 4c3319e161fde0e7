"""OpenChat v1 training files: `[[ids, mask], ...]`, one JSON array, its texts in `.text.json`.

The first release of imoneoi/openchat wrote its tokenised conversations so (TYPE.train.json and
TYPE.train.text.json, a list of strings in the same order). They are token ids of one tokenizer and
say which of them carry loss: no text can be made of them without that tokenizer, so they are a
record of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from rayward.data.formats.files.containers import RowSource, rows
from rayward.data.formats.files.outputs import Output, open_output
from rayward.data.records import Conversation, Record, RowError, describe
from rayward.data.templates.pieces import with_condition
from rayward.data.templates.template import Template, encode, truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "openchat_v1"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Ids of a conversation, which of them carry loss, and its text if it lies beside the file."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    text: str | None = None


def is_token_row(value: object) -> TypeGuard[list[list[Any]]]:
    """Whether a row has this shape: two lists."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, list) for part in value)
    )


def text_path(path: Path) -> Path:
    """Path of the texts of a file of token rows: a.train.json.gz -> a.train.text.json.gz."""
    zipped = ".gz" if path.suffix == ".gz" else ""
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    return path.with_name(f"{stem}.text.json{zipped}")


def token_row(value: object, text: object = None) -> TokenRow:
    """The record of `[ids, mask]`. RowError: another shape, ids below 0, unequal lengths."""
    if not is_token_row(value):
        raise RowError("row", describe(value), "a list [ids, mask]", "wrong type")
    ids, mask = value
    # type() is, not isinstance: true is an int in Python, but no token id.
    for index, token in enumerate(ids):
        if type(token) is not int or token < 0:
            raise RowError(
                f"ids[{index}]", describe(token), "a whole number of at least 0", "not a token id"
            )
    for index, flag in enumerate(mask):
        if type(flag) is not bool:
            raise RowError(f"mask[{index}]", describe(flag), "true or false", "wrong type")
    if len(ids) != len(mask):
        raise RowError(
            "mask", f"{len(mask)} flags", f"{len(ids)}, one an id", "mask does not match the ids"
        )
    if text is not None and not isinstance(text, str):
        raise RowError("text", describe(text), "text", "wrong type")
    return TokenRow(tuple(ids), tuple(mask), text)


def read_token_rows(source: RowSource) -> Iterator[tuple[int, TokenRow | RowError]]:
    """(number, record or error) of each row, with the texts of the file beside it if there is one.

    Texts too few or too many are an error of the rows that lack one, or of a row after the last.
    """
    beside = text_path(Path(source.name))
    texts = rows(beside) if beside.is_file() else None
    number, missing = 0, RowError("text", "no more texts", "one a row", "text is missing")
    for number, value in source.rows():
        # Rows and texts go together by their place, so a row that is refused takes its text along.
        text = next(texts, (0, missing))[1] if texts else None
        try:
            for part in (value, text):
                if isinstance(part, RowError):
                    raise part
            yield number, token_row(value, text)
        except RowError as error:
            yield number, error
    if texts and next(texts, None) is not None:
        found, expected = f"more than {number} texts", f"{number}, one a row"
        yield number + 1, RowError("text", found, expected, "text without a row")


def template_for(template: Template, record: Record | TokenRow) -> Template:
    """The template with the condition of an OpenChat row (C-RLFT), where it has words for one."""
    # Of other formats, `quality` is no condition but the name of the model that answered.
    if not isinstance(record, Conversation) or record.source != "crlft":
        return template
    condition = record.quality
    return with_condition(template, condition) if condition and template.condition else template


Encode = Callable[[Any, list[str]], TokenRow]


def encoder(template: Template, tokenizer: PreTrainedTokenizerBase, context_tokens: int) -> Encode:
    """A function `(record, repairs) -> row` from a conversation to its tokens as training sees it.

    The tail beyond `context_tokens` is lost and named in `repairs`, as is a loss weight that is not
    0 or 1. RowError: no conversation, or no answer within the context.
    """

    def encode_row(record: Any, repairs: list[str]) -> TokenRow:
        if isinstance(record, TokenRow):
            return record
        if not isinstance(record, Conversation):
            kind = type(record).__name__.lower()
            raise RowError("record", kind, "conversation", f"{NAME} has no place for its kind")
        if not any(turn.loss_weight for turn in record.turns):
            raise RowError(
                "turns", "no loss weight above 0", "an answer to learn", "nothing to learn"
            )
        try:
            worded = template_for(template, record)
            whole = encode(worded, record.turns, tokenizer, tools=record.tools)
        except ValueError as error:
            if isinstance(error, RowError):  # a RowError is a ValueError, and has its field
                raise
            raise RowError("turns", str(error), "text to encode", "not encoded") from None
        row = truncate(whole, context_tokens)
        if row is None:
            first = next(i for i, weight in enumerate(whole.weights) if weight)
            found = f"its first trained token at {first}"
            expected = f"one within {context_tokens} tokens"
            raise RowError("turns", found, expected, "no answer within the context")
        if len(row.ids) < len(whole.ids):
            repairs.append("cut to the context")
        if not {0.0, 1.0}.issuperset(row.weights):  # the format has a mask, and no weights
            repairs.append("left out loss weight")
        # The text of the ids, special tokens and cut included, as OpenChat wrote it.
        text = tokenizer.decode(row.ids, skip_special_tokens=False)
        return TokenRow(tuple(row.ids), tuple(weight > 0 for weight in row.weights), text)

    return encode_row


@contextmanager
def open_token_rows(path: Path) -> Iterator[Callable[[TokenRow], None]]:
    """A function that adds a row to a file of token rows, and its text to the file beside it.

    ValueError: a name that is not of a JSON array. The function raises RowError for a row with a
    text after rows without, or the reverse, because the two files would not match any more.
    """
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(
            f"{path}: token rows are one JSON array: the name must end in .json or .json.gz"
        )
    beside: list[Output | None] = []  # nothing before the first row, which decides: None, no texts
    with ExitStack() as stack:
        output = stack.enter_context(open_output(path))

        def write(row: TokenRow) -> None:
            if not beside:
                has_text = row.text is not None
                texts_file = open_output(text_path(path))
                beside.append(stack.enter_context(texts_file) if has_text else None)
            texts = beside[0]
            if (texts is None) != (row.text is None):
                expected = f"{'no' if texts is None else 'a'} text, as in the rows before"
                raise RowError("text", describe(row.text), expected, "texts in some rows only")
            output.write([row.ids, row.mask])
            if texts is not None:
                texts.write(row.text)

        yield write
    # Texts of an earlier file of this name would be read as those of this one.
    if beside[:1] in ([], [None]):
        text_path(path).unlink(missing_ok=True)
