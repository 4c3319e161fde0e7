"""Rows in the formats people bring, as records: one function for each format, one reader for all of them.

Field names are those of the published data sets: ShareGPT (as FastChat and OpenChat write it), Stanford
Alpaca, Anthropic hh-rlhf, berkeley-nest/Nectar, AlpacaEval model outputs, OpenAI chat files, and our own
records. Departures: Alpaca's input follows its instruction after a blank line. White space around the
turns of "\\n\\nHuman: ...\\n\\nAssistant: ..." text belongs to the frame. ShareGPT conversations are often
pieces of longer chats: a leading assistant turn and a trailing user turn are dropped, and counted.

A row that cannot be used never stops a run: it is counted, with its file and line, the field, what was
found there and what was expected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data.containers import data_files, rows
from data.records import (
    Conversation,
    Preference,
    Prompt,
    Ranking,
    Record,
    Role,
    RowError,
    Turn,
    check_turns,
    describe,
    from_json,
    list_of,
    number_of,
    object_of,
    text_of,
    validate,
)

DETECT_ROWS = 20

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not used, and why. `line`: in arrays and parquet files, the number of the row."""

    file: str
    line: int
    field: str
    found: str
    expected: str
    reason: str


@dataclass(slots=True)
class Report:
    """What became of the rows: `read` == `kept` + sum of `rejected`. `repaired`: kept rows by repair made."""

    read: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    rejected_rows: list[Rejected] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return asdict(self) | {"rejected": dict(self.rejected), "repaired": dict(self.repaired)}


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows. A row has it if it has all of one set of `keys` and none of `never`.

    `convert(row, repairs)` gives the row's records or raises RowError, and appends the names of repairs made.
    Of several formats that fit, the one with the most keys is meant.
    """

    name: str
    keys: tuple[frozenset[str], ...]
    never: frozenset[str]
    convert: Callable[[Row, list[str]], list[Record]]


def read(
    path: str | Path, format: str = "auto", report: Report | None = None, strict: bool = False
) -> Iterator[Record]:
    """Records of a file, or of a folder's data files in the order of their names, each validated.

    Unusable rows go into `report`. Raises at once: ValueError for an unknown format, or under "auto" for a
    file whose rows fit none; FileNotFoundError for no such path, or a folder without data. Raises while
    reading, with `strict`: ValueError (file:line) for the first unusable row.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: auto, {', '.join(FORMATS)}")
    files = data_files(Path(path))
    formats = [_detect(file) if format == "auto" else FORMATS[format] for file in files]
    return _read(list(zip(files, formats, strict=True)), Report() if report is None else report, strict)


def detect(path: str | Path) -> str:
    """Name of the format of a file, or of a folder's first file with rows.

    ValueError lists the keys that were found and the known formats, or says that there is no row.
    """
    for file in data_files(Path(path)):
        if found := _detect(file):
            return found.name
    raise ValueError(f"{path}: no row that is a JSON object, so its format cannot be told")


def _read(files: Sequence[tuple[Path, Format | None]], report: Report, strict: bool) -> Iterator[Record]:
    for file, form in files:
        for line, value in rows(file):
            report.read += 1
            repairs: list[str] = []
            try:
                if isinstance(value, RowError):
                    raise value
                row = object_of(value, "row")
                assert form is not None  # a file with an object among its rows has a format
                records = form.convert(row, repairs)
                for record in records:
                    validate(record)
            except RowError as error:
                if strict:
                    raise ValueError(f"{file}:{line}: {error}") from None
                report.rejected[error.reason] += 1
                rejected = Rejected(str(file), line, error.field, error.found, error.expected, error.reason)
                report.rejected_rows.append(rejected)
                continue
            report.kept += 1
            report.repaired.update(set(repairs))
            yield from records


def _detect(file: Path) -> Format | None:
    """Format of the first row that fits one; None if no row is an object. ValueError if no row fits."""
    seen: set[str] | None = None
    for row in islice((value for _, value in rows(file) if isinstance(value, dict)), DETECT_ROWS):
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
        f"{file}: rows with the fields {', '.join(sorted(seen))[:500] or '(none)'} fit no known format "
        f"({', '.join(FORMATS)}); name the format, or rename the fields"
    )


# ---- formats -----------------------------------------------------------------------------------------------

SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "system": "system", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip


def _label(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(name, describe(value), "text or an integer", "wrong type")
    return str(value)


def _role(value: object, roles: Mapping[str, Role], where: str) -> Role:
    if not isinstance(value, str) or value not in roles:
        raise RowError(where, describe(value), "one of " + ", ".join(roles), "unknown role")
    return roles[value]


def _sharegpt(row: Row, repairs: list[str]) -> list[Record]:
    name = "conversations" if row.get("conversations") is not None else "items"
    entries: list[tuple[Role, Any, str]] = []
    for index, value in enumerate(list_of(row.get(name), name)):
        where = f"{name}[{index}]"
        entry = object_of(value, where)
        role = _role(entry.get("from"), SPEAKERS, f"{where}.from")
        entries.append((role, entry.get("value"), f"{where}.value"))
    start = 1 if entries and entries[0][0] == "system" else 0
    while len(entries) > start and entries[start][0] == "assistant":
        del entries[start]
        repairs.append("dropped leading assistant turn")
    while len(entries) > start and entries[-1][0] == "user":
        del entries[-1]
        repairs.append("dropped trailing user turn")
    if len(entries) == start:
        raise RowError(name, "no user turn with an answer", "at least one", "no answered turn")
    turns = tuple(Turn(role, text_of(value, where)) for role, value, where in entries)
    return [Conversation(turns, "sharegpt", _label(row, "id"), _label(row, "model") or None)]


def _alpaca(row: Row, repairs: list[str]) -> list[Record]:
    question, context = text_of(row.get("instruction"), "instruction"), row.get("input")
    if context is not None and context != "":
        if not isinstance(context, str):
            raise RowError("input", describe(context), "text", "wrong type")
        question += f"\n\n{context}" if context.strip() else ""
    turns = (Turn("user", question), Turn("assistant", text_of(row.get("output"), "output")))
    return [Conversation(turns, "alpaca", _label(row, "id"))]


def _alpaca_eval(row: Row, repairs: list[str]) -> list[Record]:
    user = Turn("user", text_of(row.get("instruction"), "instruction"))
    if row.get("output") is None:
        return [Prompt((user,), "alpaca_eval", _label(row, "id"))]
    turns = (user, Turn("assistant", text_of(row["output"], "output")))
    return [Conversation(turns, "alpaca_eval", _label(row, "id"), _label(row, "generator") or None)]


def _framed(text: str, name: str) -> list[Turn]:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..." text; a last one of the assistant may be blank."""
    before, *pieces = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not pieces:
        expected = 'text that starts with "\\n\\nHuman:"'
        raise RowError(name, describe(text), expected, "no Human/Assistant frame")
    roles = [SPEAKERS["human"] if label == "Human" else SPEAKERS["assistant"] for label in pieces[::2]]
    return [Turn(role, content.strip()) for role, content in zip(roles, pieces[1::2], strict=True)]


def _hh_rlhf(row: Row, repairs: list[str]) -> list[Record]:
    prompts, answers = [], []
    for name in ("chosen", "rejected"):
        prompt, found, answer = text_of(row.get(name), name).rpartition("\n\nAssistant:")
        if not found or "\n\nHuman:" in answer:
            raise RowError(name, "a Human turn last", "an Assistant turn last", "ends with the human")
        prompts.append(prompt)
        answers.append(text_of(answer, f"{name}, last turn").strip())
    if prompts[0] != prompts[1]:
        raise RowError("rejected", describe(prompts[1]), "the prompt of chosen", "prompts differ")
    turns = tuple(_framed(prompts[0], "chosen"))
    return [Preference(turns, answers[0], answers[1], source="hh_rlhf", id=_label(row, "id"))]


def _nectar(row: Row, repairs: list[str]) -> list[Record]:
    turns = _framed(text_of(row.get("prompt"), "prompt"), "prompt")
    if turns[-1] == Turn("assistant", ""):
        turns.pop()
    ranked: list[tuple[float, str]] = []
    for index, value in enumerate(list_of(row.get("answers"), "answers")):
        where = f"answers[{index}]"
        entry = object_of(value, where)
        rank = number_of(entry.get("rank"), f"{where}.rank")
        ranked.append((rank, text_of(entry.get("answer"), f"{where}.answer")))
    for name in ("num_responses", "num_response"):
        if row.get(name) is not None and number_of(row[name], name) != len(ranked):
            expected = f"{len(ranked)}, the number of answers"
            raise RowError(name, str(row[name]), expected, "wrong number of answers")
    ranked.sort(key=lambda pair: pair[0])
    source = row.get("source")
    if isinstance(source, list | tuple):
        source = "+".join(text_of(part, "source") for part in source)
    ranks, answers = tuple(rank for rank, _ in ranked), tuple(answer for _, answer in ranked)
    label = _label({"source": source}, "source") or "nectar"
    return [Ranking(tuple(turns), answers, label, _label(row, "id"), ranks)]


def _messages(value: object, name: str) -> tuple[Turn, ...]:
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    turns = []
    for index, item in enumerate(list_of(value, name)):
        where = f"{name}[{index}]"
        entry = object_of(item, where)
        weight = entry.get("weight")
        turns.append(
            Turn(
                _role(entry.get("role"), roles, f"{where}.role"),
                text_of(entry.get("content"), f"{where}.content"),
                None if weight is None else number_of(weight, f"{where}.weight"),
            )
        )
    return tuple(turns)


def _openai(row: Row, repairs: list[str]) -> list[Record]:
    name = "prompt" if row.get("prompt") is not None else "messages"
    value = row.get(name)
    turns = (Turn("user", text_of(value, name)),) if isinstance(value, str) else _messages(value, name)
    if row.get("chosen") is None and row.get("rejected") is None:
        check_turns(turns, field=name)
        kind = Conversation if turns[-1].role == "assistant" else Prompt
        return [kind(turns, "openai", _label(row, "id"))]
    answers = [_answer(row.get(side), side, turns) for side in ("chosen", "rejected")]
    margin = None if row.get("margin") is None else number_of(row["margin"], "margin")
    return [Preference(turns, answers[0], answers[1], margin, "openai", _label(row, "id"))]


def _answer(value: object, name: str, prompt: tuple[Turn, ...]) -> str:
    """Text of an answer that is given as text, as one assistant message, or as the whole conversation."""
    if value is None or isinstance(value, str):
        return text_of(value, name)
    turns = _messages(value, name)
    if not turns or turns[-1].role != "assistant" or turns[:-1] not in ((), prompt):
        expected = "an assistant message, alone or after the prompt"
        raise RowError(name, f"{len(turns)} messages", expected, "answer does not follow the prompt")
    return turns[-1].content


def _rayward(row: Row, repairs: list[str]) -> list[Record]:
    return [from_json(row)]


def _format(name: str, convert: Callable[[Row, list[str]], list[Record]], *keys: str, never: str = "") -> Format:
    return Format(name, tuple(frozenset(some.split()) for some in keys), frozenset(never.split()), convert)


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        _format("rayward", _rayward, "kind turns"),
        _format("sharegpt", _sharegpt, "conversations", "items", never="chosen rejected label"),
        _format("alpaca", _alpaca, "instruction output", never="generator dataset instances completions"),
        _format(
            "alpaca_eval",
            _alpaca_eval,
            "instruction output generator",
            "instruction dataset",
            "instruction",
            never="input instances completions response response1 output_1",
        ),
        _format("hh_rlhf", _hh_rlhf, "chosen rejected", never="prompt messages conversations instruction question"),
        _format("nectar", _nectar, "prompt answers", never="ranking_order model_ranking"),
        _format("openai", _openai, "messages", "prompt chosen rejected", "messages chosen rejected", never="label"),
    )
}
