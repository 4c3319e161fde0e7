"""The formats that are known, and one reader for all of them: files, folders and hub data sets as
records.

What a row of each format becomes is in data/formats/readers_chat.py and
data/formats/readers_ranked.py; what a record becomes in each format, in data/formats/writers.py.
`read` is a stream of records; `outcomes` says for every row what became of it.

A row that cannot be used never stops a run: it is counted, with its file and line, the field, what
was found there and what was expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rayward.data.formats import readers_chat as chat
from rayward.data.formats import readers_ranked as ranked
from rayward.data.formats import token_rows
from rayward.data.formats.containers import RowSource, sources
from rayward.data.formats.readers_chat import Questions, Row
from rayward.data.records import Record, RowError, object_of, validate

DETECT_ROWS = 20
QUESTION_FILES = ("question.jsonl", "question.jsonl.gz")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not used, and why. `line`: in arrays and parquet files, the number of the
    row.
    """

    file: str
    line: int
    field: str
    found: str
    expected: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: its records and the names of the repairs, or no records and an
    `error`.
    """

    file: str
    line: int
    records: tuple[Any, ...] = ()
    repairs: tuple[str, ...] = ()
    error: RowError | None = None

    def rejected(self) -> Rejected:
        """The error with its place. Only for an outcome that has one."""
        assert self.error is not None
        return Rejected(self.file, self.line, **self.error.as_dict())


@dataclass(slots=True)
class Report:
    """What became of the rows: `read` == `kept` + sum of `rejected`. `repaired`: kept rows by
    repair made.
    """

    read: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    rejected_rows: list[Rejected] = field(default_factory=list)

    def count(self, outcome: Outcome) -> None:
        """Add a row; one that was refused is not listed in `rejected_rows`, which would grow with
        the file.
        """
        self.read += 1
        if outcome.error is not None:
            self.rejected[outcome.error.reason] += 1
            return
        self.kept += 1
        self.repaired.update(set(outcome.repairs))

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return asdict(self) | {"rejected": dict(self.rejected), "repaired": dict(self.repaired)}


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows. A row has it if it has all of one set of `keys` and none of `never`.

    `convert(row, repairs)` gives the row's records or raises RowError, and appends the names of
    repairs made. Of several formats that fit, the one with the most keys is meant. One without keys
    is used where it is named.
    """

    name: str
    keys: tuple[frozenset[str], ...]
    never: frozenset[str]
    convert: Callable[[Row, list[str]], list[Record]]


def read(
    path: str | Path, format: str = "auto", report: Report | None = None, strict: bool = False
) -> Iterator[Record]:
    """Records of a file, of a folder's data files in the order of their names, or of "hf:NAME",
    each validated.

    Unusable rows go into `report`. Raises at once: ValueError for an unknown format, or under
    "auto" for a file whose rows fit none; FileNotFoundError for no such path, or a folder without
    data. Raises while reading, with `strict`: ValueError (file:line) for the first unusable row.
    """
    stream = outcomes(path, format, token_files=False)
    return _read(stream, Report() if report is None else report, strict)


def outcomes(
    path: str | Path, format: str = "auto", questions: Path | None = None, token_files: bool = True
) -> Iterator[Outcome]:
    """What becomes of each row of `path` (see `read`), in order and in constant memory. Raises as
    `read` does.

    MT-Bench answers need their questions: `questions`, or question.jsonl(.gz) in the folder of the
    answers or the one above it, as FastChat has it; ValueError if there is neither. The records of
    an "openchat_v1" file are `TokenRow`s; without `token_files` such a file is a ValueError.
    """
    if format not in ("auto", token_rows.NAME, *FORMATS):
        raise ValueError(
            f"unknown format {format!r}; known: auto, {', '.join(FORMATS)}, {token_rows.NAME}"
        )
    opened = []
    for source in sources(path):
        form = _detect(source) if format == "auto" else FORMATS.get(format, TOKENS)
        if form is TOKENS and not token_files:
            raise ValueError(
                f"{source.name}: rows of token ids and masks hold no text to read records from"
            )
        if form is not None and form.name == "mt_bench_answers":
            form = replace(
                form, convert=partial(chat.mt_bench_answer, _questions(source, questions))
            )
        opened.append((source, form))
    texts = {
        str(token_rows.text_path(Path(source.name))) for source, form in opened if form is TOKENS
    }
    return (
        outcome
        for source, form in opened
        if source.name not in texts
        for outcome in _outcomes(source, form)
    )


def _read(stream: Iterator[Outcome], report: Report, strict: bool) -> Iterator[Record]:
    for outcome in stream:
        report.count(outcome)
        if outcome.error is not None:
            if strict:
                raise ValueError(f"{outcome.file}:{outcome.line}: {outcome.error}")
            report.rejected_rows.append(outcome.rejected())
        yield from outcome.records


def _outcomes(source: RowSource, form: Format | None) -> Iterator[Outcome]:
    if form is TOKENS:
        for line, tokens in token_rows.read_token_rows(source):
            bad = tokens if isinstance(tokens, RowError) else None
            yield Outcome(source.name, line, () if bad else (tokens,), error=bad)
        return
    for line, value in source.rows():
        repairs: list[str] = []
        try:
            if isinstance(value, RowError):
                raise value
            row = object_of(value, "row")
            assert form is not None  # a file with an object among its rows has a format
            records = form.convert(row, repairs)
            for record in records:
                validate(record)
            records = [ranked.distinct(record, repairs) for record in records]
        except RowError as error:
            yield Outcome(source.name, line, error=error)
            continue
        yield Outcome(source.name, line, tuple(records), tuple(repairs))


def _detect(source: RowSource) -> Format | None:
    """Format of the first row that fits one; None if no row is an object. ValueError if no row
    fits.
    """
    seen: set[str] | None = None
    usable = (
        value
        for _, value in source.rows()
        if isinstance(value, dict) or token_rows.is_token_row(value)
    )
    for row in islice(usable, DETECT_ROWS):
        if not isinstance(row, dict):
            return TOKENS
        keys = {key for key, value in row.items() if value is not None}
        fits = [
            (len(wanted), form)
            for form in FORMATS.values()
            for wanted in form.keys
            if wanted <= keys and not form.never & keys
        ]
        if fits:
            return max(fits, key=lambda fit: fit[0])[1]
        seen = (seen or set()) | keys
    if seen is None:
        return None
    raise ValueError(
        f"{source.name}: rows with the fields {', '.join(sorted(seen))[:500] or '(none)'} fit no "
        f"known format ({', '.join(FORMATS)}); name the format, or rename the fields"
    )


def _questions(source: RowSource, given: Path | None) -> Questions:
    """Texts of the MT-Bench questions by id, from the file `given` or the one beside the
    answers.
    """
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


# ---- formats
# -----------------------------------------------------------------------------------------------


def _format(
    name: str, convert: Callable[[Row, list[str]], list[Record]], *keys: str, never: str = ""
) -> Format:
    return Format(
        name, tuple(frozenset(some.split()) for some in keys), frozenset(never.split()), convert
    )


# Not in FORMATS, whose rows are objects and whose records are text.
TOKENS = _format(token_rows.NAME, lambda row, repairs: [])

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        _format("rayward", chat.rayward, "kind turns"),
        _format("sharegpt", chat.sharegpt, "conversations", "items", never="chosen rejected label"),
        _format(
            "alpaca",
            chat.alpaca,
            "instruction output",
            "instruction response",
            never="generator dataset instances completions",
        ),
        _format("self_instruct", chat.self_instruct, "instruction instances"),
        _format(
            "gsm8k", chat.gsm8k, "question answer", never="ground_truth choices options context"
        ),
        _format("gsm8k_solutions", ranked.gsm8k_solutions, "question ground_truth"),
        _format("kto", chat.kto, "messages label", never="chosen rejected"),
        _format("sharegpt_pairs", ranked.sharegpt_pairs, "conversations chosen rejected"),
        _format("pandalm", ranked.pandalm, "instruction response1 response2 annotator1"),
        _format(
            "arena",
            ranked.arena,
            "prompt response_a response_b winner",
            "prompt response_a response_b",
        ),
        _format("starling_truthful", partial(ranked.starling, "truthful", "ac", "b")),
        _format("starling_verbose", partial(ranked.starling, "verbose", "b", "a")),
        _format(
            "alpaca_eval_annotations",
            ranked.alpaca_eval_annotation,
            "instruction output_1 output_2 preference",
        ),
        _format(
            "alpaca_eval",
            chat.alpaca_eval,
            "instruction output generator",
            "instruction dataset",
            "instruction",
            never="input instances completions response response1 output_1",
        ),
        _format(
            "hh_rlhf",
            ranked.hh_rlhf,
            "chosen rejected",
            never="prompt messages conversations instruction question",
        ),
        _format("nectar", ranked.nectar, "prompt answers", never="ranking_order model_ranking"),
        _format(
            "openai",
            ranked.openai,
            "messages",
            "prompt chosen rejected",
            "messages chosen rejected",
            never="label",
        ),
        _format("ultrachat", chat.ultrachat, "data", "id data", never="class"),
        _format("ultra_eval", chat.ultra_eval, "class data"),
        _format("crlft", chat.crlft, "items condition", "items system"),
        _format("ultrafeedback", ranked.ultrafeedback, "instruction completions"),
        _format("mt_bench_questions", chat.mt_bench_question, "question_id turns"),
        _format(
            "mt_bench_answers",
            partial(chat.mt_bench_answer, {}),
            "question_id choices",
            "question_id model_id text",
        ),
        _format(
            "rewardbench",
            ranked.rewardbench,
            "prompt chosen rejected subset",
            never="messages label",
        ),
    )
}
