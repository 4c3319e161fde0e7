"""From one format to another, row by row, with an account of what became of every row.

    read == converted + sum(rejected)          always
    written == converted + expanded            `expanded`: rows beyond the first that a row became

so `read == written + sum(rejected)` where a row becomes a row. More rows come only from rankings
written as pairs and from MT-Bench answers with several choices. A row is converted whole or not at
all: if one of its records cannot be written, the row is rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayward.data.formats.files.outputs import Output, open_output
from rayward.data.formats.files.overwriting import refuse_overwriting
from rayward.data.formats.files.token_rows import NAME as TOKENS
from rayward.data.formats.files.token_rows import Encode, TokenRow, open_token_rows, text_path
from rayward.data.formats.registry import ACCOUNTS, AS_IT_IS, Outcome, Rejected, outcomes
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.formats.writers.table import WRITERS
from rayward.data.records import RowError
from rayward.data.values import UnusableError

MAX_SHOWN = 5  # rows that an error shows


@dataclass(slots=True)
class Account:
    """What became of the rows. `repaired`: converted rows by repair made or thing left out.

    `passed_over`: rows by field that the reader has no use for, as in `Report`.
    `first`: the first rejected rows for people, FILE:LINE and why.
    """

    read: int = 0
    converted: int = 0
    written: int = 0
    expanded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON, without `first`: all rejected rows are in a file of their own."""
        values = asdict(self) | {name: dict(getattr(self, name)) for name in ACCOUNTS}
        del values["first"]
        return values

    def nothing(self) -> str:
        """What to say where no row was written."""
        reasons = [f"{reason} ({count})" for reason, count in self.rejected.items()]
        told = f"no usable row of {self.read} read; nothing is written"
        return "\n".join([": ".join([told, *filter(None, [", ".join(reasons)])]), *self.first])


class _NoUsableRowError(Exception):
    """Leaves the files that are being written as they were."""


def rejected_path(out: Path) -> Path:
    """Where the rows go that cannot be used."""
    return out.with_name(out.name + ".rejected.jsonl")


def outputs(out: Path, target_format: str) -> list[Path]:
    """All files that a conversion to `out` may write."""
    return [out, rejected_path(out), *([text_path(out)] if target_format == TOKENS else [])]


def convert(
    path: str | Path,
    out: Path,
    source_format: str = "auto",
    target_format: str = "rayward",
    questions: Path | None = None,
    strict: bool = False,
    encode: Encode | None = None,
    options: ReadOptions = AS_IT_IS,
) -> Account:
    """Write the rows of `path` (file, folder or "hf:NAME") to `out` in another format.

    Memory does not grow with the file. Rejected rows go to OUT.rejected.jsonl, which is not there
    if there are none. `out` is put in place at the end; an exception leaves it as it was, and so
    does an input without a usable row: `written` is 0 then, and rejected rows are listed only where
    no output of an earlier run is there, beside which they would lie. `encode` makes the token rows
    of OpenChat v1 from text. `options`: what the user asks of the reader. ValueError: an unknown
    format, a name of `out` that tells no container, `out` among the files that are read, or with
    `strict` the first unusable row (file:line).
    """
    if target_format not in (TOKENS, *WRITERS):
        raise ValueError(
            f"unknown format to write {target_format!r}; known: {', '.join(WRITERS)}, {TOKENS}"
        )
    if encode and target_format != TOKENS:
        raise ValueError(
            f"a chat template makes rows of {TOKENS}, not of {target_format}; choose --to {TOKENS}"
        )
    # An output with the name of an input would take its place. The caller's mistakes are told
    # before anything is written.
    refuse_overwriting(outputs(out, target_format), [path, questions])
    rejected = rejected_path(out)
    beside = [text_path(out)] if target_format == TOKENS else []
    if beside and beside[0].exists() and not out.exists():
        raise ValueError(
            f"{beside[0]} is there, and would be replaced by the texts of {out}; choose another "
            "name"
        )
    account = Account()
    stream = outcomes(path, source_format, questions, options=options)
    # The writer's file is put in place before that of the rejected rows, which thereby never lie
    # beside an output of an earlier run.
    with suppress(_NoUsableRowError), _rejected_file(rejected) as reject:
        with suppress(_NoUsableRowError), _writer(out, target_format, encode) as write:
            for outcome in stream:
                _convert_row(outcome, account, write, reject, strict)
            if not account.written:
                raise _NoUsableRowError
        if not account.written and out.exists():
            raise _NoUsableRowError
    account.expanded = account.written - account.converted
    return account


Write = Callable[[tuple[Any, ...], list[str]], int]


def _convert_row(
    outcome: Outcome,
    account: Account,
    write: Write,
    reject: Callable[[Rejected], None],
    strict: bool,
) -> None:
    account.read += 1
    account.passed_over.update(outcome.passed_over)
    repairs = list(outcome.repairs)
    # What the reader and the writer refuse is one account.
    try:
        if outcome.error is not None:
            raise outcome.error
        num_rows = write(outcome.records, repairs)
    except RowError as error:
        if strict:
            raise UnusableError(f"{outcome.file}:{outcome.line}: {error}") from None
        account.rejected[error.reason] += 1
        if len(account.first) < MAX_SHOWN:
            account.first.append(f"{outcome.file}:{outcome.line}: {error}")
        reject(Rejected(outcome.file, outcome.line, **error.as_dict()))
        return
    account.converted += 1
    account.written += num_rows
    account.repaired.update(set(repairs))  # a set: rows are counted, not repairs


@contextmanager
def _writer(out: Path, target_format: str, encode: Encode | None) -> Iterator[Write]:
    """A function that writes the records of a row and returns the number of rows they became."""
    if target_format == TOKENS:
        with open_token_rows(out) as write_token_row:

            def write_tokens(records: tuple[Any, ...], repairs: list[str]) -> int:
                rows = [encode(record, repairs) for record in records] if encode else records
                for row in rows:
                    if not isinstance(row, TokenRow):
                        expected = "token ids, or --template to make them"
                        raise RowError("row", "text", expected, "text has no token ids")
                    write_token_row(row)
                return len(rows)

            yield write_tokens
        return
    writer = WRITERS[target_format]
    with open_output(out, writer.columns) as output:

        def write(records: tuple[Any, ...], repairs: list[str]) -> int:
            if any(isinstance(record, TokenRow) for record in records):
                raise RowError("row", "token ids and mask", "text", "token ids have no text")
            # All rows are made before the first is written: a row is converted whole or not at all.
            rows = [row for record in records for row in writer.rows(record, repairs)]
            for row in rows:
                output.write(row)
            return len(rows)

        yield write


@contextmanager
def _rejected_file(path: Path) -> Iterator[Callable[[Rejected], None]]:
    """A function that adds a line to a file, which is there only if there is a line."""
    opened: list[Output] = []  # empty until the first line
    with ExitStack() as stack:

        def write(row: Rejected) -> None:
            if not opened:
                opened.append(stack.enter_context(open_output(path)))
            opened[0].write(asdict(row))

        yield write
    if not opened:
        path.unlink(missing_ok=True)  # of an earlier run
