"""What evaluate says of its judge, on held-out rankings or labelled pairs: counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayward.configs.decisive import decisive
from rayward.configs.schema import Config
from rayward.data.record_json import to_json
from rayward.data.records import Prompt
from rayward.data.toy import toyworld
from rayward.pipelines.preflight import check_labelled
from rayward.pipelines.report.judge_words import NOT_BETTER, in_words
from rayward.pipelines.run import given
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages.judge_trust import judge_figures

PAIRS = [
    {"prompt": "What is 2 plus 2?", "chosen": "4", "rejected": "It is 5, I think"},
    {"prompt": "What is 3 plus 3?", "chosen": "It is 6", "rejected": "5"},
    {"prompt": "What is 1 plus 4?", "chosen": "It is 5", "rejected": "5 and 7"},
    {"prompt": "What is 9 minus 1?", "chosen": "8", "rejected": "It is 9"},
]


def length(prompts: list[Prompt], answers: list[str]) -> np.ndarray:
    return np.array([float(len(answer)) for answer in answers])


def by_list(right: list[str]) -> Callable[[list[Prompt], list[str]], np.ndarray]:
    """A judge that gives these answers 1 and others 0; NaN to answers of no letter."""
    return lambda prompts, answers: np.array([float(answer in right) for answer in answers])


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def on_file(tmp_path: Path, tiny_config: Callable[..., Config]) -> Run:
    labelled = write(tmp_path / "labelled.jsonl", PAIRS)
    return Run(tmp_path, tiny_config(evaluate={"labelled": labelled}))


@pytest.fixture
def held_out(tmp_path: Path, tiny_config: Callable[..., Config]) -> Run:
    (tmp_path / "prepare").mkdir()
    rankings = toyworld.rankings(20, 4, 0.25, seed=3)[0]
    write(tmp_path / "prepare" / "heldout.jsonl", list(map(to_json, rankings)))
    return Run(tmp_path, tiny_config())


def test_a_judge_by_hand(on_file: Run) -> None:
    # Right on the first three, wrong on the last; the longer answer is right on the second only,
    # and neither of the third is longer.
    found = judge_figures(on_file, by_list(["4", "It is 6", "It is 5", "It is 9"]))
    longer, judge = found["judges"]
    assert (found["pairs"], found["prompts"], found["left_out"]) == (4, 4, {})
    assert found["labels"] == on_file.config.evaluate.labelled
    assert judge["accuracy"]["mean"] == 3 / 4
    assert longer["accuracy"]["mean"] == (0 + 1 + 1 / 2 + 0) / 4
    assert judge["beyond_length"]["mean"] == 3 / 4 - 3 / 8
    # Of the three pairs that differ in length it takes the longer one twice.
    assert judge["prefers_longer"] | {"low": 0, "high": 0} == {
        "mean": 2 / 3, "low": 0, "high": 0, "n": 3,
    }  # fmt: skip
    assert judge["conflicts"]["n"] == 0 and judge["missing"] == 0
    words = in_words(found)
    assert "accuracy 0.750 [" in words and "the longer answer's accuracy being 0.375 [" in words


def test_a_judge_that_is_always_right_is_better_than_length_and_length_itself_is_not(
    on_file: Run,
) -> None:
    right = judge_figures(on_file, by_list([row["chosen"] for row in PAIRS]))
    assert right["judges"][1]["accuracy"] == {"mean": 1, "low": 1, "high": 1, "n": 4}
    assert not right["no_better_than_length"] and NOT_BETTER not in in_words(right)
    taken = judge_figures(on_file, length)
    assert taken["no_better_than_length"] and taken["judges"][1]["beyond_length"]["high"] == 0
    assert f"{NOT_BETTER}, so its win rates say little" in in_words(taken)


def test_answers_without_a_score_are_no_verdicts(on_file: Run) -> None:
    def silent(prompts: list[Prompt], answers: list[str]) -> np.ndarray:
        return np.array([np.nan if answer == "4" else len(answer) for answer in answers])

    found = judge_figures(on_file, silent)
    assert found["judges"][1]["missing"] == 1 and found["judges"][1]["n"] == 3
    assert "no verdict on 1" in in_words(found)
    none = judge_figures(on_file, lambda prompts, answers: np.full(len(answers), np.nan))
    assert none == {"not_measured": "the judge says nothing of 4 labelled pairs"}


def test_the_gold_judge_on_held_out_rankings_is_right_but_for_the_noise(held_out: Run) -> None:
    rankings = toyworld.rankings(20, 4, 0.25, seed=3)[0]

    def gold(prompts: list[Prompt], answers: list[str]) -> np.ndarray:
        both = zip(prompts, answers, strict=True)
        return np.array([toyworld.judge(prompt.turns, answer) for prompt, answer in both])

    scores = [[toyworld.judge(each.turns, answer) for answer in each.answers] for each in rankings]
    right = [
        (1 + np.sign(of[i] - of[j])) / 2 for of in scores for i in range(4) for j in range(i + 1, 4)
    ]
    found = judge_figures(held_out, gold)
    assert (found["labels"], found["pairs"], found["prompts"]) == ("held-out rankings", 120, 20)
    assert found["judges"][1]["accuracy"]["mean"] == pytest.approx(np.mean(right))
    assert judge_figures(held_out, gold) == found, "the seed decides the pairs and the interval"


def test_so_many_pairs_as_are_asked_for_and_none_where_0_are(
    held_out: Run, tiny_config: Callable[..., Config]
) -> None:
    few = Run(held_out.folder, tiny_config(evaluate={"labelled_pairs": 7}))
    assert judge_figures(few, length)["pairs"] == 7
    none = Run(held_out.folder, tiny_config(evaluate={"labelled_pairs": 0}))
    assert judge_figures(none, length) == {"not_measured": "evaluate.labelled_pairs is 0"}
    (held_out.folder / "prepare" / "heldout.jsonl").write_text("")
    told = in_words(judge_figures(held_out, length))
    assert told.startswith("not measured: prepare held out no ranking")
    assert in_words(None).startswith("not measured")


def test_bad_rows_are_counted_and_a_file_without_pairs_is_told(
    on_file: Run, tiny_config: Callable[..., Config], capsys: Any
) -> None:
    path = on_file.folder / "mixed.jsonl"
    write(path, [*PAIRS, {"prompt": "Why?", "chosen": "so"}])
    mixed = Run(on_file.folder, tiny_config(evaluate={"labelled": str(path)}))
    found = judge_figures(mixed, length)
    assert found["pairs"] == 4 and sum(found["left_out"].values()) == 1
    assert f"on 4 labelled pairs ({path}; left out: 1 " in in_words(found)
    assert "mixed.jsonl:5: rejected" in capsys.readouterr().out
    write(path, [{"prompt": "Why?", "chosen": "so", "rejected": " "}])
    with pytest.raises(StageError, match=r"evaluate\.labelled: .*mixed\.jsonl.*no labelled pair"):
        judge_figures(mixed, length)
    gone = tiny_config(evaluate={"labelled": str(on_file.folder / "gone.jsonl")})
    with pytest.raises(StageError, match=r"evaluate\.labelled: .*gone\.jsonl: no such file"):
        check_labelled(gone, {"evaluate"})
    check_labelled(gone, {"publish"})


def test_runs_of_before_are_taken_as_they_are_and_a_changed_file_is_told(
    on_file: Run, tiny_config: Callable[..., Config]
) -> None:
    plain = decisive(tiny_config(), "evaluate")["evaluate"]
    assert not {"labelled", "labelled_pairs", "suites"} & plain.keys()
    assert decisive(on_file.config, "evaluate")["evaluate"]["labelled"]
    before = given.digests(on_file.config, "evaluate")
    assert given.changed(before, given.digests(on_file.config, "evaluate")) == []
    write(Path(str(on_file.config.evaluate.labelled)), PAIRS[:2])
    after = given.digests(on_file.config, "evaluate")
    assert given.changed(before, after) == ["evaluate.labelled"]
