"""Which figures raise which alarms, what they are compared with, and what the report shows of
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayward.algorithms.diversity import distinct_ratio, repetition_rate
from rayward.configs.decisive import decisive
from rayward.configs.load import load
from rayward.configs.plan import roles
from rayward.configs.schema import Config
from rayward.configs.sections.rl import MonitorSection
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.pipelines.report.monitor import PANELS, monitor_html
from rayward.pipelines.rl.alarms import MEANINGS, alarms_of, compared, counts, next_running
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.scoring.scorer import second_model

LIMITS = [name for name in MonitorSection.model_fields if name[:4] in ("max_", "min_")]
START = {
    "score": 1.0, "kl": 0.0, "length": 20.0, "truncated": 0.1, "repetition": 0.02, "distinct": 1.0,
    "second_score": 0.5, "second_std": 2.0, "mismatch_factor": 1.0, "equal_groups": 0.2,
}  # fmt: skip
# (limit, its default, figures of a later iteration exactly at it)
AT_THE_LIMIT = [
    ("max_kl", 50.0, {"kl": 50.0}),
    ("max_length_ratio", 2.0, {"length": 40.0}),
    ("min_length_ratio", 0.5, {"length": 10.0}),
    ("max_truncated", 0.5, {"truncated": 0.5}),
    ("max_repetition", 0.3, {"repetition": 0.3}),
    ("min_distinct", 0.3, {"distinct": 0.3}),
    ("max_equal_groups", 0.9, {"equal_groups": 0.9}),
    ("max_second_drop", 0.5, {"second_score": -0.5, "score": 1.5}),
    ("max_mismatch_factor", 1.05, {"mismatch_factor": 1.05}),
]


@pytest.mark.parametrize("name, limit, figures", AT_THE_LIMIT)
def test_an_alarm_is_beyond_its_limit_only(
    name: str, limit: float, figures: dict[str, float]
) -> None:
    at = MonitorSection()
    assert alarms_of(compared(START, START), at) == {}
    assert alarms_of(compared(START, START | figures), at) == {}
    watched = {"second_drop": "second_score"}.get(name[4:], next(iter(figures)))
    step = -1e-3 if name.startswith("min") or watched == "second_score" else 1e-3
    beyond = compared(START, START | figures | {watched: figures[watched] + step})
    found = alarms_of(beyond, at)
    assert list(found) == [name] and found[name] == (beyond[name[4:]], limit)
    assert alarms_of(beyond, MonitorSection(**{name: None})) == {}, "null is no alarm"


def test_every_limit_is_tested_and_has_a_meaning_and_a_place_in_the_curves() -> None:
    assert [name for name, *_ in AT_THE_LIMIT] == LIMITS == list(MEANINGS)
    shown = [name for names in PANELS.values() for name in names]
    assert sorted([*shown, "max_mismatch_factor"]) == sorted(LIMITS), (
        "the mismatch has its curve in the RL panel"
    )
    for meaning in MEANINGS.values():
        assert "{value" in meaning and meaning.format(value=0.5) != meaning.format(value=0.75)


def test_figures_are_compared_with_iteration_0_of_the_same_run() -> None:
    other = START | {"length": 5.0, "score": 3.0, "second_score": 4.5, "second_std": 4.0}
    assert compared(other, START)["length_ratio"] == 4.0
    assert compared(START, other)["length_ratio"] == 0.25
    fell = other | {"second_score": 2.5}
    assert compared(other, fell | {"score": 3.1})["second_drop"] == pytest.approx((4.5 - 2.5) / 4.0)
    assert compared(other, fell)["second_drop"] == 0, "the trained reward did not rise"
    assert compared(other, other | {"score": 9.0, "second_score": 9.0})["second_drop"] == 0
    without = {name: value for name, value in START.items() if not name.startswith("second")}
    assert "second_drop" not in compared(START, without), "not measured in this iteration"
    assert (
        "second_drop" not in compared(without, without)
        and alarms_of(compared(without, without), MonitorSection()) == {}
    )


def test_degenerate_answers_raise_repetition_and_distinct() -> None:
    varied = [[i, i + 7, i + 3, 2 * i, i + 9, i + 1, 5 * i, i + 2] for i in range(0, 600, 10)]
    loops = [[1, 2] * 10 for _ in varied]
    now = START | {
        "repetition": sum(repetition_rate(answer, 4) for answer in loops) / len(loops),
        "distinct": distinct_ratio(loops, varied, 2),
    }
    assert set(alarms_of(compared(START, now), MonitorSection())) == {
        "max_repetition",
        "min_distinct",
    }


def test_an_alarm_whose_figure_is_not_measured_stays_as_it_was() -> None:
    high, low = {"kl": 60.0, "length": 20.0}, {"kl": 1.0, "length": 20.0}
    running = next_running({}, high, ["max_kl"])
    assert running == {"max_kl": 1}
    running = next_running(running, {"length": 20.0}, ["max_truncated"])
    assert running == {"max_kl": 1, "max_truncated": 1}
    assert next_running(running, high, ["max_kl"]) == {"max_kl": 2, "max_truncated": 1}
    assert next_running(running, low | {"truncated": 0.1}, []) == {}


def test_alarms_are_counted_by_name() -> None:
    alarms = [
        {"name": name, "iteration": i}
        for i, name in [(2, "max_kl"), (2, "min_distinct"), (3, "max_kl"), (9, "max_kl")]
    ]
    assert counts(alarms) == {
        "max_kl": {"iterations": 3, "first": 2},
        "min_distinct": {"iterations": 1, "first": 2},
    }


def test_what_is_watched_does_not_decide_what_is_learned() -> None:
    plain = load("quickstart")
    watched = load(
        "quickstart",
        ["rl.monitor.max_kl=1", "rl.monitor.prompts=0", "rl.monitor.stop_on_alarm=true"],
    )
    assert watched.rl.monitor != plain.rl.monitor
    assert decisive(plain, "rl/ppo") == decisive(watched, "rl/ppo")


def test_patience_without_stopping_is_refused() -> None:
    with pytest.raises(ValueError, match="rl.monitor.patience 5 has no effect without"):
        load("quickstart", ["rl.monitor.patience=5"])


def test_a_second_model_is_an_actor_of_rl() -> None:
    gold, model = load("quickstart"), load("quickstart", ["evaluate.judge=reward_model"])
    assert "second" not in roles(gold, "rl") and "second" in roles(model, "rl")
    assert (
        roles(load("quickstart", ["rl.monitor.second=folder"]), "rl")["second"]
        == gold.resources.reward
    )


@pytest.fixture
def renderer() -> Renderer:
    from rayward.data.templates.template import find

    template = find("openchat_3.5")
    tokenizer = train_tokenizer(["It is cold. It is hot."], 300, template.special_tokens, 128)
    return Renderer(template, tokenizer, 128)


def test_a_second_model_is_a_folder_with_a_model(
    renderer: Renderer, tiny_config: Any, tmp_path: Path
) -> None:
    def config(folder: str) -> Config:
        return tiny_config(rl={"monitor": {"second": folder}})

    assert second_model(Run(tmp_path, tiny_config()), renderer) is None
    with pytest.raises(StageError, match="holds no model"):
        second_model(Run(tmp_path, config(str(tmp_path / "none"))), renderer)


def test_the_report_shows_nothing_of_a_run_without_monitors_and_escapes_answers(
    tmp_path: Path, tiny_config: Any
) -> None:
    run = Run(tmp_path, tiny_config())
    folder = tmp_path / "rl" / "ppo"
    (folder / "fixed").mkdir(parents=True)
    assert monitor_html(run, ["ppo"]) == []
    row = {
        "step": 0,
        "score_std": 1.0,
        **START,
        **{f"monitor/{name}": 0.5 for name in ("distinct_2", "repetition", "truncated")},
    }
    write_jsonl(folder / "metrics.jsonl", [row, row | {"step": 1}])
    write_jsonl(folder / "alarms.jsonl", [])
    for look in range(5):
        answer = {
            "prompt": "1 < 2?",
            "answer": f"<b>{look}</b>",
            "score": 0.5,
            "second": None,
            "tokens": 3,
            "finished": True,
        }
        write_jsonl(folder / "fixed" / f"{10 * look:05d}.jsonl", [answer])
    page = "".join(monitor_html(run, ["ppo", "apa"]))
    assert (
        "No alarm." in page
        and "PPO" in page
        and "APA" not in page
        and "data:image/png;base64" in page
    )
    assert [f"iteration {n}" in page for n in (0, 10, 20, 30, 40)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert "&lt;b&gt;2&lt;/b&gt;" in page and "<b>2" not in page and "1 &lt; 2?" in page
