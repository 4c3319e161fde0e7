"""One reader for all known formats: files, folders and hub data sets as records.

What a row of each format becomes is in data/formats/known/formats.py; what a record becomes in
each format, in data/formats/writers/table.py. `read` is a stream of records; `outcomes` says for
every row what became of it.

A row that cannot be used never stops a run: it is counted, with its file and line, the field, what
was found there and what was expected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from rayward.data.formats.beside import read_row
from rayward.data.formats.dataset_info import described
from rayward.data.formats.files import token_rows
from rayward.data.formats.files.containers import RowSource, sources
from rayward.data.formats.known.format import Format
from rayward.data.formats.known.formats import FORMATS, TOKENS
from rayward.data.formats.known.plain import NO_FORMAT
from rayward.data.formats.mapped import FieldMap
from rayward.data.formats.readers import chat, ranked
from rayward.data.formats.readers.chat import Questions
from rayward.data.formats.rows.fields import ReadOptions, as_object, columns
from rayward.data.formats.rows.meaning import MEANING_OF
from rayward.data.formats.unread import ANSWERS, check_answers
from rayward.data.records import Record, RowError, object_of, validate

AS_IT_IS = ReadOptions()
DETECT_ROWS = 20  # usable rows to try: bad ones at the start of a file must not hide its format
DECLARED_ROWS = 10_000
"""Rows in which a column that is empty in the first ones is looked for."""
ACCOUNTS = ("rejected", "repaired", "passed_over")
"""The counts of a report by what was wrong, mended, or not read."""
QUESTION_FILES = ("question.jsonl", "question.jsonl.gz")


class NoFormatError(ValueError):
    """Rows that fit no known format, and the `source` that they are of."""

    def __init__(self, message: str, source: RowSource) -> None:
        super().__init__(message)
        self.source = source


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not used, and why. `line`: in arrays and parquet files, the row's number."""

    file: str
    line: int
    field: str
    found: str
    expected: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: its records and the names of the repairs, or an `error` and none.

    `passed_over`: the fields that say something and are not read, each 1, by their dotted paths.
    Columns of a file that are not even opened stand with their number of rows in its first outcome.
    """

    file: str
    line: int
    records: tuple[Any, ...] = ()
    repairs: tuple[str, ...] = ()
    error: RowError | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def rejected(self) -> Rejected:
        """The error with its place. Only for an outcome that has one."""
        assert self.error is not None
        return Rejected(self.file, self.line, **self.error.as_dict())


@dataclass(slots=True)
class Report:
    """What became of the rows: `read` == `kept` + sum of `rejected`.

    `repaired`: kept rows by repair made. `passed_over`: rows by field that no reader uses; kept
    rows, or all those of a column that is not opened.
    """

    read: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    rejected_rows: list[Rejected] = field(default_factory=list)

    def count(self, outcome: Outcome) -> None:
        """Add a row. `rejected_rows` gets none, as it would grow with the file."""
        self.read += 1
        self.passed_over.update(outcome.passed_over)
        if outcome.error is not None:
            self.rejected[outcome.error.reason] += 1
            return
        self.kept += 1
        self.repaired.update(set(outcome.repairs))  # a set: rows are counted, not repairs

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        counts = {name: dict(getattr(self, name)) for name in ACCOUNTS}
        return asdict(self) | counts


def read(
    path: str | Path,
    format: str = "auto",
    report: Report | None = None,
    strict: bool = False,
    options: ReadOptions = AS_IT_IS,
) -> Iterator[Record]:
    """Validated records of a file, of a folder's data files by name, or of "hf:NAME".

    Unusable rows go into `report`. Raises at once: ValueError for an unknown format, or under
    "auto" for a file whose rows fit none; FileNotFoundError for no such path, or a folder without
    data. Raises while reading, with `strict`: ValueError (file:line) for the first unusable row.
    """
    rows = located(path, format, report, strict, options)
    return (record for record, _ in rows)


def located(
    path: str | Path,
    format: str = "auto",
    report: Report | None = None,
    strict: bool = False,
    options: ReadOptions = AS_IT_IS,
) -> Iterator[tuple[Record, Outcome]]:
    """`read`, with what became of the row that each record is from, which says file and line."""
    stream = outcomes(path, format, token_files=False, options=options)
    return _located(stream, Report() if report is None else report, strict)


def outcomes(
    path: str | Path,
    format: str = "auto",
    questions: Path | None = None,
    token_files: bool = True,
    options: ReadOptions = AS_IT_IS,
) -> Iterator[Outcome]:
    """What becomes of each row of `path`, in order and in constant memory. Raises as `read` does.

    MT-Bench answers need their questions: `questions`, or question.jsonl(.gz) in the folder of the
    answers or the one above it, as FastChat has it; ValueError if there is neither. The records of
    an "openchat_v1" file are `TokenRow`s; without `token_files` such a file is a ValueError.
    `options`: what the user asks for.
    """
    if format not in ("auto", token_rows.NAME, *FORMATS):
        raise ValueError(
            f"unknown format {format!r}; known: auto, {', '.join(FORMATS)}, {token_rows.NAME}"
        )
    # The formats of all files are settled here, before the first row: this is no generator, so that
    # a caller's mistake is raised by the call and not in the middle of a run.
    opened = []
    for source in files_of(path, format, options):
        form = format_of(source, format, options)
        if form is TOKENS and not token_files:
            raise ValueError(
                f"{source.name}: rows of token ids and masks hold no text to read records from"
            )
        if form is not None and form.name == "mt_bench_answers":
            convert = partial(chat.mt_bench_answer, _questions(source, questions))
            form = replace(form, convert=convert)
        opened.append((source, form))
    # In a folder, the texts of a file of token rows are a data file by their name. They are read
    # with their rows, not as rows.
    texts = {
        str(token_rows.text_path(Path(source.name))) for source, form in opened if form is TOKENS
    }
    return (
        outcome
        for source, form in opened
        if source.name not in texts
        for outcome in _outcomes(source, form, options, format == "auto" and not options.fields)
    )


def _located(
    stream: Iterator[Outcome], report: Report, strict: bool
) -> Iterator[tuple[Record, Outcome]]:
    for outcome in stream:
        report.count(outcome)
        if outcome.error is not None:
            if strict:
                raise ValueError(f"{outcome.file}:{outcome.line}: {outcome.error}")
            report.rejected_rows.append(outcome.rejected())
        for record in outcome.records:
            yield record, outcome


def _outcomes(
    source: RowSource, form: Format | None, options: ReadOptions, is_told: bool
) -> Iterator[Outcome]:
    """`is_told`: the format is told from the rows. One that is named is meant as it is."""
    if form is TOKENS:
        for line, tokens in token_rows.read_token_rows(source):
            error = tokens if isinstance(tokens, RowError) else None
            yield Outcome(source.name, line, () if error else (tokens,), error=error)
        return
    needed = None if form is None else columns(form.tree)
    if needed is not None and is_told:
        needed |= ANSWERS  # answers that are not read are told row by row
    unopened = {} if needed is None else source.unopened(needed)
    for line, value in source.rows(needed):
        repairs: list[str] = []
        passed_over, unopened = unopened, {}  # told with the first row
        try:
            if isinstance(value, RowError):
                raise value
            row = object_of(as_object(value), "row")
            assert form is not None  # a file with an object among its rows has a format
            records, fields = read_row(form, row, repairs, options)
            if is_told and not ANSWERS.isdisjoint(fields):
                own = _best_fit(_given(row))
                check_answers(form, own and own[1], row, fields, records)
            # Readers check what they need to read; the rules of records are checked here for all.
            for record in records:
                validate(record)
            records = [ranked.distinct(record, repairs) for record in records]
        except RowError as error:
            error = _under_given_name(error, source.given_names)
            yield Outcome(source.name, line, error=error, passed_over=passed_over)
            continue
        except RecursionError:  # brackets within brackets, a thousand times
            deep = RowError("row", "values nested too deeply", "a row", "nested too deeply")
            yield Outcome(source.name, line, error=deep, passed_over=passed_over)
            continue
        passed_over |= dict.fromkeys(fields, 1)
        yield Outcome(source.name, line, tuple(records), tuple(repairs), passed_over=passed_over)


def files_of(path: str | Path, name: str, options: ReadOptions = AS_IT_IS) -> list[RowSource]:
    """The files to read, under the names of a dataset_info.json beside them.

    Not so where the format is named, or the fields are mapped.
    """
    if name != "auto" or options.fields or options.roles:
        return sources(path)
    return [described(source) for source in sources(path)]


def _under_given_name(error: RowError, names: Mapping[str, str]) -> RowError:
    """The error with the name that the file has for the field."""
    first = re.match(r"[^.\[]*", error.field)
    known = first[0] if first else ""
    if names.get(known, known) == known:
        return error
    field = names[known] + error.field[len(known) :]
    return RowError(field, error.found, error.expected, error.reason)


def format_of(source: RowSource, name: str, options: ReadOptions = AS_IT_IS) -> Format | None:
    """The format of a file's rows: by its name, by its rows, or the one that `options` map.

    None if no row is an object. NoFormatError if the rows fit none; ValueError for two ways at
    once.
    """
    if options.fields or options.roles:
        if name != "auto":
            raise ValueError(f"the fields are mapped, so that the format {name!r} reads nothing")
        return FieldMap(options.fields, options.roles).format
    return _detect(source) if name == "auto" else FORMATS.get(name, TOKENS)


TELLING = frozenset(
    name for form in FORMATS.values() for names in (form.never, *form.keys) for name in names
)
"""The fields by which formats are told."""


def _detect(source: RowSource) -> Format | None:
    """Format of the first row that fits one; None if no row is an object. ValueError if none fits.

    A format with more of the fields is meant where the first rows have them together, or later ones
    those that are null in these. Reads the start of the source; `rows` starts anew for the reader.
    """
    seen: set[str] = set()
    declared: set[str] = set()
    first: Fit | None = None
    has_rows = False
    found = (as_object(value) for _, value in source.rows(TELLING))
    usable = (value for value in found if isinstance(value, dict) or token_rows.is_token_row(value))
    for row in islice(usable, DETECT_ROWS):
        if not isinstance(row, dict):
            return TOKENS
        # A null is no field: in a parquet file, every row has the columns of all.
        keys = _given(row)
        first = first or _best_fit(keys)
        has_rows = True
        seen |= keys
        declared |= row.keys() & TELLING
    if not has_rows:
        return None
    if first is not None:
        return _wider(source, first, seen, declared)[1]
    # Of a file of columns, the others are not known yet.
    seen |= next((value.keys() for _, value in source.rows() if isinstance(value, dict)), set())
    why = next((f": {why}" for keys, why in NO_FORMAT if keys <= seen), "")
    raise NoFormatError(
        f"{source.name}: rows with the fields {', '.join(sorted(seen))[:500] or '(none)'} fit no "
        f"known format{why} ({', '.join(FORMATS)}); name the format, or say where what is wanted "
        "stands (fields; rayward data check proposes them)",
        source,
    )


Fit: TypeAlias = "tuple[frozenset[str], Format]"


def _given(row: Mapping[str, Any]) -> set[str]:
    return {key for key, value in row.items() if value is not None}


def _best_fit(keys: set[str]) -> Fit | None:
    """The format of most keys that a row with these fields has, and those keys."""
    fits = [
        (wanted, form)
        for form in FORMATS.values()
        for wanted in form.keys
        if wanted <= keys and not form.never & keys
    ]
    return max(fits, key=lambda fit: len(fit[0])) if fits else None


def _wider(source: RowSource, first: Fit, seen: set[str], declared: set[str]) -> Fit:
    """The format of which the first row has a part only, or else its own."""
    for keys in (seen, declared):
        found = _best_fit(keys)
        if found is None or not first[0] < found[0]:
            continue
        # Every format reads a verdict and its like beside the turns.
        more = {key for key in found[0] - first[0] if key not in MEANING_OF}
        if more and (more <= seen or _hold(source, more)):
            return found
    return first


def _hold(source: RowSource, names: set[str]) -> bool:
    """Whether one of the rows says something in all of these fields."""
    rows = islice(source.rows(frozenset(names)), DECLARED_ROWS)
    return any(isinstance(row, dict) and names <= _given(row) for _, row in rows)


def _questions(source: RowSource, given: Path | None) -> Questions:
    """Texts of the MT-Bench questions by id, from the file `given` or the one beside them."""
    folder = Path(source.name).parent
    beside = [place / name for place in (folder, folder.parent) for name in QUESTION_FILES]
    path = given or next((path for path in beside if path.is_file()), None)
    if path is None:
        raise ValueError(
            f"{source.name}: MT-Bench answers hold no questions; give the question file "
            "(--questions)"
        )
    prompts = read(path, "mt_bench_questions", strict=True)
    return {prompt.id: (prompt.turns[0].content, *prompt.follow_ups) for prompt in prompts}  # type: ignore[union-attr]
