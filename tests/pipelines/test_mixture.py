"""Mixtures: how many rows of each source are drawn, which, and that none changes its side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rayward.configs.decisive import decisive
from rayward.configs.schema import Config
from rayward.configs.sections.data import Data, DataSource
from rayward.pipelines.rows.mixture import counts, drawn, order, unmixed
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages.prepare import prepare


def sources(*settings: dict[str, Any]) -> tuple[DataSource, ...]:
    return tuple(DataSource(path=f"{i}.jsonl", **more) for i, more in enumerate(settings))


@pytest.mark.parametrize(
    ("settings", "temperature", "rows", "taken"),
    [
        ([{}, {}], None, [10, 4], [10, 4]),
        ([{"epochs": 2}, {"epochs": 0.5}], None, [10, 5], [20, 2]),  # 2.5 rounds to even
        ([{"epochs": 0.01}, {}], None, [10, 0], [1, 0]),
        # 100 rows in shares of 3 to 1: 75 and 25.
        ([{"weight": 3}, {"weight": 1}], None, [50, 50], [75, 25]),
        ([{"weight": 0.3}, {"weight": 0.1}], None, [90, 10], [75, 25]),
        # Thirds of 10: the remainders are equal, so the first has the row.
        ([{"weight": 1}] * 3, None, [8, 1, 1], [4, 3, 3]),
        # A source without rows leaves its share to the others.
        ([{"weight": 9}, {"weight": 1}, {"weight": 1}], None, [0, 6, 2], [0, 4, 4]),
        ([{"weight": 1}, {"weight": 2}], None, [0, 0], [0, 0]),
        ([{}, {}], 1.0, [997, 3], [997, 3]),
        # sqrt(900) : sqrt(100) = 3 : 1 of 1000 rows.
        ([{}, {}], 2.0, [900, 100], [750, 250]),
        # 10 and 5 to the power 1/5: 1.58489 and 1.37973, of 15 rows 8.019 and 6.981.
        ([{}, {}], 5.0, [10, 5], [8, 7]),
        ([{}, {}], 1e9, [900, 100], [500, 500]),
        ([{}], 2.0, [7], [7]),
        # (9/10)^100 = 0.0000266: of 19 rows less than a half, so the larger source has all.
        ([{}, {}], 0.01, [10, 9], [19, 0]),
        # (999/1000)^100 = 0.9048: of 1999 rows 1049.46 and 949.54.
        ([{}, {}], 0.01, [1000, 999], [1049, 950]),
        ([{}, {}, {}], 5e-324, [10_000, 0, 10_000], [10_000, 0, 10_000]),
        ([{}, {}], 5e-324, [10_000, 9_999], [19_999, 0]),
        ([{}, {}], 0.5, [0, 0], [0, 0]),
    ],
)
def test_rows_of_each_source(
    settings: list[dict[str, Any]], temperature: float | None, rows: list[int], taken: list[int]
) -> None:
    assert counts(sources(*settings), rows, temperature) == taken


@pytest.mark.parametrize(
    ("rows", "count"), [(7, 0), (7, 3), (7, 7), (7, 14), (7, 17), (1, 5), (0, 0)]
)
def test_each_row_is_drawn_as_often_as_any_other_up_to_one(rows: int, count: int) -> None:
    taken = drawn(rows, count, [5, 0, 1])
    times = Counter(taken.tolist())
    assert len(taken) == count and set(times) <= set(range(rows))
    if rows:
        assert max(times.values(), default=0) - min(times[row] for row in range(rows)) <= 1
    assert np.array_equal(taken, drawn(rows, count, [5, 0, 1]))


def test_another_seed_draws_other_rows() -> None:
    some = [set(drawn(1000, 100, [seed]).tolist()) for seed in range(3)]
    # 100 of 1000: two draws share 10 rows on average, with a standard deviation below 3.
    assert all(len(a & b) < 30 for a, b in pairwise(some))


def test_a_pass_without_settings_is_the_rows_as_they_are() -> None:
    data = Data(conversations=sources({}, {}))
    assert order(data, "conversations", "conversations", [3, 2], 1).tolist() == [0, 1, 2, 3, 4]
    assert order(Data(), "conversations", "conversations", [4], 1).tolist() == [0, 1, 2, 3]
    mixed = Data(conversations=sources({"epochs": 2}, {}))
    assert order(mixed, "conversations", "conversations", [2, 2], 1).tolist() == [0, 1, 0, 1, 2, 3]
    assert order(mixed, "sft_heldout", "conversations", [2, 2], 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"conversations": [{"weight": 1}, {"epochs": 2}]}, "both say how many rows are drawn"),
        ({"conversations": [{"weight": 1}, {}]}, "1.jsonl has none; weights are relative"),
        ({"conversations": [{"weight": 1}]}, "relative to nothing"),
        ({"evaluation_prompts": [{"epochs": 2}]}, "measured with, each row once; remove epochs"),
        ({"evaluation_prompts": [{"weight": 2}, {"weight": 1}]}, "remove weight"),
        (
            {"temperature": 2, "prompts": [{"epochs": 2}, {}]},
            "data.temperature and data.prompts.epochs both",
        ),
        (
            {"temperature": 2, "preferences": [{"weight": 2}, {"weight": 1}]},
            "data.temperature and data.preferences.weight both",
        ),
        ({"temperature": 2, "conversations": [{}], "prompts": [{}]}, "several sources to mix"),
        ({"temperature": 0, "conversations": [{}, {}]}, "greater than 0"),
        ({"conversations": [{"epochs": 0}]}, "greater than 0"),
        ({"preferences": [{"imitate_good": True}]}, "list it under data.conversations"),
    ],
)
def test_settings_that_exclude_each_other(data: dict[str, Any], told: str) -> None:
    lists = {
        name: [{"path": f"{i}.jsonl", **source} for i, source in enumerate(value)]
        if isinstance(value, list)
        else value
        for name, value in data.items()
    }
    with pytest.raises(ValidationError, match=told):
        Data(**lists)
    Data(conversations=sources({"weight": 1}, {"weight": 2}), prompts=sources({"epochs": 3}))


def test_weights_of_sources_of_different_kinds_are_told() -> None:
    data = Data(preferences=sources({"weight": 3}, {"weight": 1}))
    names = [source.path for source in data.preferences]
    lists = dict.fromkeys(("rankings", "labelled", "labelled_heldout"), "preferences")

    def account(*rows: int) -> list[dict[str, Any]]:
        return [{"source": name, "rows": n} for name, n in zip(names, rows, strict=True)]

    held = {"rankings": account(9, 2), "labelled": account(0, 4), "labelled_heldout": account(0, 1)}
    (told,) = unmixed(data, held, lists)
    assert "weight changes nothing in labelled" in told and f"all of {names[1]}" in told
    plain = Data(preferences=sources({}, {}))
    assert not [*unmixed(plain, held, lists)]


def chat(question: str) -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": "An answer."}


def pair(question: str) -> dict[str, Any]:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + "good", "rejected": start + "bad"}


ROWS = {
    "many.jsonl": [chat(f"Many {i}?") for i in range(60)],
    "few.jsonl": [chat(f"Few {i}?") for i in range(20)],
    "pairs.jsonl": [pair(f"Pair {i}?") for i in range(40)],
    "ask.jsonl": [{"instruction": f"Ask {i}.", "dataset": "own"} for i in range(8)],
    "evaluation.jsonl": [{"instruction": f"Evaluation {i}.", "dataset": "own"} for i in range(16)],
}


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> Callable[..., Config]:
    root = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(**data: Any) -> Config:
        def source(name: str, key: str) -> dict[str, Any]:
            return {"path": name, **data.pop(key, {})}

        lists = {
            "conversations": [source("many.jsonl", "many"), source("few.jsonl", "few")],
            "preferences": [source("pairs.jsonl", "pairs")],
            "prompts": [source("ask.jsonl", "ask")],
            "evaluation_prompts": [{"path": "evaluation.jsonl"}],
        }
        return tiny_config(
            model={"context_tokens": 128, "scratch": {"vocab_size": 320}},
            data={
                "toyworld": None,
                "root": str(root),
                "sft_heldout_fraction": 0.2,
                "heldout_fraction": 0.3,
                **lists,
                **data,
            },
            evaluate={"judge": "reward_model", "prompts": 16},
        )

    return made


def prepared(folder: Path, config: Config) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The questions of each file, in order, and the report."""
    run = Run(folder, config)
    assert prepare(run) is not None
    asked = {
        path.stem: [record.turns[0].content for record in load_records(path)]
        for path in (run.folder / "prepare").glob("*.jsonl")
        if path.stem != "metrics"
    }
    for path in (run.folder / "prepare").glob("*.jsonl"):
        if path.stem in asked:
            ids = [record.id for record in load_records(path)]
            assert len(ids) == len(set(ids)), "later stages find a prompt by its id"
    return asked, read_json(run.folder / "prepare" / "report.json")


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, config: Callable[..., Config]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    return prepared(tmp_path_factory.mktemp("plain"), config())


MEASURED = ("sft_heldout", "heldout", "evaluation_prompts")


def test_copies_stay_on_their_side(
    plain: tuple[dict[str, list[str]], dict[str, Any]],
    config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    settings = {"many": {"epochs": 0.5}, "few": {"epochs": 3}, "pairs": {"epochs": 2}}
    asked, report = prepared(tmp_path, config(**settings, ask={"epochs": 2.5}))
    before, _ = plain
    for name in MEASURED:
        assert asked[name] == before[name] and len(set(asked[name])) == len(asked[name]) > 0
    assert not set(asked["conversations"]) & set(asked["sft_heldout"])
    assert not set(asked["rankings"] + asked["judge"]) & set(asked["heldout"])
    times = Counter(asked["conversations"])
    assert {times[q] for q in before["conversations"] if q.startswith("Few")} == {3}
    many = [q for q in before["conversations"] if q.startswith("Many")]
    assert sum(times[q] for q in many) == round(len(many) / 2) == len([q for q in many if times[q]])
    assert Counter(asked["rankings"]) == Counter(2 * before["rankings"])
    assert sorted(Counter(asked["prompts"]).values()) == [2] * 4 + [3] * 4
    # The account says it, in rows and in tokens.
    first, second = report["mixture"]["conversations"]
    assert first["source"] == "many.jsonl" and first["rows"] == len(many)
    assert first["drawn"] == round(len(many) / 2) and second["drawn"] == 3 * second["rows"]
    assert (
        second["epochs"] == 3
        and second["tokens"] == 3 * plain[1]["mixture"]["conversations"][1]["tokens"]
    )
    assert report["kept"] == plain[1]["kept"], "what fits does not depend on what is drawn"


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"many": {"weight": 1}, "few": {"weight": 1}}, (1, 1)),
        ({"temperature": 1e9}, (1, 1)),
        ({"many": {"weight": 1}, "few": {"weight": 3}}, (1, 3)),
    ],
)
def test_weights_and_temperature_keep_the_number_of_rows(
    settings: dict[str, Any],
    shares: tuple[int, int],
    plain: tuple[dict[str, list[str]], dict[str, Any]],
    config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    asked, report = prepared(tmp_path, config(**settings))
    total = len(plain[0]["conversations"])
    assert len(asked["conversations"]) == total
    many, few = (part["drawn"] for part in report["mixture"]["conversations"])
    assert many + few == total and abs(many - total * shares[0] / sum(shares)) < 1
    assert Counter(q.split()[0] for q in asked["conversations"]) == {"Many": many, "Few": few}
    assert {name: asked[name] for name in MEASURED} == {name: plain[0][name] for name in MEASURED}
    assert asked["rankings"] == plain[0]["rankings"]


def test_the_seed_decides_the_draw(config: Callable[..., Config], tmp_path: Path) -> None:
    half = config(many={"epochs": 0.5})
    runs = [prepared(tmp_path / name, half)[0] for name in ("a", "b")]
    assert runs[0] == runs[1]
    other = prepared(tmp_path / "c", half.model_copy(update={"seed": half.seed + 1}))[0]
    assert other["conversations"] != runs[0]["conversations"]


def test_settings_at_their_default_decide_nothing(config: Callable[..., Config]) -> None:
    """A run of an earlier version has none of them in its manifest."""
    data = decisive(config(), "prepare")["data"]
    assert data["conversations"][0] == {"path": "many.jsonl", "format": "auto", "limit": None}
    assert "temperature" not in data
    mixed = decisive(config(many={"epochs": 2, "fields": {"prompt": "q"}}), "prepare")["data"]
    assert mixed["conversations"][0]["epochs"] == 2
    assert mixed["conversations"][0]["fields"] == {"prompt": "q"}
