"""Random valid records through every writer and its reader: nothing changes, or the writer says
which field its format lacks.

What becomes of random fields of a row is in tests/data/test_fields.py, and here for mapped rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rayward.data.formats.beside import read_row
from rayward.data.formats.mapped import FieldMap
from rayward.data.formats.registry import read
from rayward.data.formats.rows.fields import ReadOptions, is_empty
from rayward.data.formats.rows.meaning import MEANING_OF
from rayward.data.formats.writers.table import WRITERS
from rayward.data.records import (
    BLANK,
    KINDS,
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    Turn,
    validate,
)

# Derandomised: the same examples in every run.
QUICK = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Beside any text: what formats and readers take for more than text.
MARKS = (
    "\n\nHuman: ",
    "\n\nAssistant:",
    "Human: a\n\nAssistant:",
    "\n\n### Input:\n",
    '[{"role": "user", "content": "x"}]',
    '[{"from": "human", "value": "x"}]',
    "[]",
    " ",
    "\n",
    "\u200b",
    "\x00",
    "\u2028",
    "<|im_end|>",
)
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(
    st.one_of(st.text(CHARACTERS, max_size=6), st.sampled_from(MARKS)), min_size=1, max_size=3
).map("".join).filter(lambda text: text.strip(BLANK) != "")  # fmt: skip
PLAIN = st.text("abc d", min_size=1, max_size=8).map(lambda text: f"x{text}y")
LABELS = st.one_of(
    st.just(""), st.integers(0, 10**6).map(str), st.text("ab-1/", min_size=1, max_size=6)
)
WEIGHTS = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 10))


def turns(text: st.SearchStrategy[str], last: str) -> st.SearchStrategy[tuple[Turn, ...]]:
    """A system turn or none, one or two exchanges, mostly without weights."""
    weights = st.one_of(st.none(), st.none(), st.none(), WEIGHTS)

    def made(system: str | None, pairs: list[tuple[Any, ...]]) -> tuple[Turn, ...]:
        found = () if system is None else (Turn("system", system),)
        for asked, said, asked_weight, said_weight in pairs:
            found += (Turn("user", asked, asked_weight), Turn("assistant", said, said_weight))
        return found if last == "assistant" else found[:-1]

    pairs = st.lists(st.tuples(text, text, weights, weights), min_size=1, max_size=2)
    return st.builds(made, st.one_of(st.none(), st.none(), text), pairs)


def records(
    text: st.SearchStrategy[str], kinds: Sequence[type[Record]] = (*KINDS.values(),)
) -> st.SearchStrategy[Record]:
    optional = st.one_of(st.none(), text)
    label = {"source": LABELS, "id": LABELS}
    prompt = turns(text, "user")
    answers = st.lists(text, min_size=2, max_size=4, unique_by=str.strip)
    gaps = st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=4, max_size=4)

    def ranking(asked: Any, said: list[str], steps: list[float] | None, **more: str) -> Ranking:
        ranks = None
        if steps is not None:
            ranks = tuple(1.0 + sum(steps[: index + 1]) for index in range(len(said)))
        return Ranking(asked, tuple(said), ranks=ranks, **more)

    def preference(asked: Any, two: list[str], margin: float | None, **more: str) -> Preference:
        return Preference(asked, two[0], two[1], margin, **more)

    pairs = st.lists(text, min_size=2, max_size=2, unique_by=str.strip)
    follow_ups = st.lists(text, max_size=2).map(tuple)
    margin = st.one_of(st.none(), st.floats(0, 8))
    made: dict[type[Record], st.SearchStrategy[Record]] = {
        Conversation: st.builds(Conversation, turns(text, "assistant"), quality=optional, **label),
        Prompt: st.builds(Prompt, prompt, follow_ups=follow_ups, reference=optional, **label),
        Ranking: st.builds(ranking, prompt, answers, st.one_of(st.none(), gaps), **label),
        Preference: st.builds(preference, prompt, pairs, margin, **label),
        Labelled: st.builds(Labelled, prompt, text, st.booleans(), **label),
    }
    return st.one_of(*(made[kind] for kind in kinds))


def expected(record: Record, name: str, repairs: list[str]) -> list[Record]:
    """What a reader gives back, but for the source: less what the writer named in `repairs`."""
    for label in ("id", "quality"):
        if f"left out {label}" in repairs:
            record = replace(record, **{label: "" if label == "id" else None})
    if name == "nectar":
        ranking = record.as_ranking() if isinstance(record, Preference) else record
        assert isinstance(ranking, Ranking)
        ranks = ranking.ranks or tuple(float(n) for n in range(1, len(ranking.answers) + 1))
        return [replace(ranking, ranks=ranks)]
    if isinstance(record, Ranking) and name in ("openai", "hh_rlhf", "rewardbench"):
        ranks = record.ranks or tuple(range(len(record.answers)))
        ranked = zip(ranks, record.answers, strict=True)
        return [
            Preference(record.turns, better, worse, source=record.source, id=record.id)
            for (rank, better), (other, worse) in combinations(ranked, 2)
            if rank < other
        ]
    return [record]


def same(record: Record, stripped: bool) -> Record:
    """The record without its source, its weights in numbers, and white space that was named."""
    text = str.strip if stripped else str
    said = tuple(Turn(turn.role, text(turn.content), turn.loss_weight) for turn in record.turns)
    record = replace(record, turns=said, source="")
    if isinstance(record, Preference):
        return replace(record, chosen=text(record.chosen), rejected=text(record.rejected))
    if isinstance(record, Ranking):
        return replace(record, answers=tuple(map(text, record.answers)))
    return record


def round_trip(record: Record, name: str, folder: Path) -> bool:
    """Whether the format takes the record, which then comes back the same."""
    validate(record)
    repairs: list[str] = []
    try:
        rows = WRITERS[name].rows(record, repairs)
    except RowError as error:
        assert error.field and error.found and error.expected and error.reason
        return False
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if name == "mt_bench_answers":
        questions = [turn.content for turn in record.turns if turn.role == "user"]
        question = {"question_id": int(record.id), "turns": questions}
        (folder / "question.jsonl").write_text(json.dumps(question))
    stripped = "left out white space around turns" in repairs
    found = [same(back, stripped) for back in read(path, name, strict=True)]
    assert found == [same(back, stripped) for back in expected(record, name, repairs)]
    return True


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_changes_on_the_way_out_and_back(name: str, tmp_path: Path) -> None:
    kinds = WRITERS[name].kinds
    taken = []

    @QUICK
    @given(records(TEXTS, kinds))
    def any_text(record: Record) -> None:
        taken.append(round_trip(record, name, tmp_path))

    @QUICK
    @given(records(PLAIN, kinds))
    def plain_text(record: Record) -> None:
        taken.append(round_trip(record, name, tmp_path))

    any_text()
    plain_text()
    assert any(taken), "a writer that refuses all would pass"


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_refused_is_what_the_format_lacks(name: str, tmp_path: Path) -> None:
    """Of one question, without weights and labels, every kind of a format can be written."""

    @QUICK
    @given(records(PLAIN), st.integers(0, 10**6).map(str))
    def one_question(record: Record, number: str) -> None:
        if not isinstance(record, WRITERS[name].kinds):
            with pytest.raises(RowError, match="record: found"):
                WRITERS[name].rows(record, [])
            return
        plain: dict[str, Any] = {
            "turns": tuple(replace(turn, weight=None) for turn in record.turns)
        }
        plain["turns"] = tuple(turn for turn in plain["turns"] if turn.role != "system")[:2]
        if isinstance(record, Conversation):
            plain["quality"] = "model"
        else:
            plain["turns"] = plain["turns"][:1]
        if isinstance(record, Prompt):
            plain |= {"follow_ups": (), "reference": None}
        if isinstance(record, Preference):
            plain["margin"] = None
        if isinstance(record, Ranking):
            plain["ranks"] = None
        assert round_trip(replace(record, id=number, **plain), name, tmp_path)

    one_question()


SAYS = st.one_of(
    st.text("ab", min_size=1), st.integers(1, 9), st.just(["a"]), st.just({"b": "c"}), st.just(True)
)


@QUICK
@given(st.one_of(st.text(CHARACTERS, min_size=1, max_size=8), st.sampled_from([*MEANING_OF])), SAYS)
def test_a_field_beside_the_mapped_ones_is_never_passed_over_in_silence(
    name: str, value: Any
) -> None:
    form = FieldMap({"prompt": "q", "response": "a"}).format
    row = {"q": "Why?", "a": "Because."}
    (plain,), _ = read_row(form, row, [], ReadOptions())
    if name in row or is_empty(value):
        return
    try:
        (record,), passed_over = read_row(form, row | {name: value}, [], ReadOptions())
    except RowError as error:
        assert name in error.field or name in error.reason
        return
    assert passed_over == [name] or record != plain
