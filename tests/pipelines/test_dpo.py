"""What DPO learns from when it learns from samples; its kin on the real stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.load import ConfigError
from rayward.configs.schema import STAGE_SECTIONS, Config
from rayward.configs.stages import STAGES
from rayward.data.record_json import to_json
from rayward.data.records import Labelled, Prompt, Ranking, Turn, validate
from rayward.data.toy.toyworld import rankings
from rayward.pipelines.align import align
from rayward.pipelines.report.report import write_report
from rayward.pipelines.run.files import read_json, read_jsonl, write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages.dpo import sampled_rankings
from tests.conftest import SMALL, TinyModels

PROMPT = Prompt((Turn("user", "Why?"),), "toy", "p")


def row(answers: str, scores: list[float], response: str, **more: Any) -> dict[str, Any]:
    said = {
        "prompt_id": "p",
        "answers": list(answers),
        "scores": scores,
        "response": response,
        "kept": True,
    }
    return said | {"ended": [True] * len(answers)} | more


def ranked(sample: dict[str, Any], count: int) -> Ranking | None:
    found = list(sampled_rankings([PROMPT], [sample], count))
    for ranking in found:
        validate(ranking)
    return found[0] if found else None


def test_the_kept_answer_stands_against_worse_ones_down_to_the_worst() -> None:
    sample = row("abcde", [1.0, 5.0, 2.0, 4.0, 3.0], "b")
    assert ranked(sample, 2) == Ranking(PROMPT.turns, ("b", "a"), "samples", "p", (0.0, 1.0))
    assert ranked(sample, 3) == Ranking(
        PROMPT.turns, ("b", "e", "a"), "samples", "p", (0.0, 1.0, 2.0)
    )
    everything = ranked(sample, 9)
    assert everything is not None and "".join(everything.answers) == "bdeca"


def test_equal_texts_are_one_answer_and_equal_scores_are_ties() -> None:
    sample = row("abacd", [2.0, 5.0, 2.0, 2.0, 1.0], "b")
    assert ranked(sample, 9) == Ranking(
        PROMPT.turns, ("b", "a", "c", "d"), "samples", "p", (0.0, 1.0, 1.0, 2.0)
    )


def test_an_answer_that_was_cut_is_left_out_whatever_its_score() -> None:
    kept = Ranking(PROMPT.turns, ("a", "b"), "samples", "p", (0.0, 1.0))
    assert ranked(row("xab", [9.0, 5.0, 1.0], "a", ended=[False, True, True]), 2) == kept
    assert ranked(row("axb", [5.0, 0.0, 1.0], "a", ended=[True, False, True]), 2) == kept


def test_samples_that_do_not_say_which_answers_were_cut_are_taken_where_all_ended() -> None:
    old = {name: value for name, value in row("ab", [5.0, 1.0], "a").items() if name != "ended"}
    assert ranked(old | {"finished": 2}, 2) == Ranking(
        PROMPT.turns, ("a", "b"), "samples", "p", (0.0, 1.0)
    )
    assert ranked(old | {"finished": 1}, 2) is None


@pytest.mark.parametrize(
    "sample",
    [
        row("ab", [1.0, 2.0], "b", kept=False),
        row("bb", [2.0, 2.0], "b"),
        row(["b", ""], [2.0, 1.0], "b"),
    ],
)
def test_prompts_without_a_worse_answer_are_left_out(sample: dict[str, Any]) -> None:
    assert ranked(sample, 2) is None


def test_without_a_section_the_command_says_so(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"this config leaves out dpo \(dpo: null\); give it a section"
    ):
        align(tiny_config(), tmp_path, ("dpo",))


# ---- the kin of DPO, on the real stack
# ----------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_models: TinyModels, local_ray: None, tmp_path: Path) -> Callable[..., Any]:
    """`trained("labels pairs", dpo={...})`: a run of these stages on 40 labelled answers, 20
    rankings of three, or both; its run and summary.
    """
    ranked, _ = rankings(48, 3, 0.0, 1)
    labels = [
        Labelled(ranking.turns, answer, good, ranking.source, ranking.id)
        for ranking in ranked[:20]
        for answer, good in ((ranking.answers[0], True), (ranking.answers[-1], False))
    ]
    write_jsonl(tmp_path / "labels.jsonl", [to_json(record) for record in labels])
    write_jsonl(tmp_path / "pairs.jsonl", [to_json(record) for record in ranked[20:40]])

    def run(files: str, **sections: Any) -> tuple[Run, dict[str, Any]]:
        sources = [{"path": f"{name}.jsonl"} for name in files.split()]
        data = {"root": str(tmp_path), "heldout_fraction": 0.3, "preferences": sources}
        values = {name: SMALL[name] for name in ("cluster", "resources")}
        model = {
            "path": tiny_models.policy,
            "template": "tokenizer",
            "context_tokens": 128,
            "dtype": "float32",
        }
        values |= dict.fromkeys(STAGE_SECTIONS) | {"model": model, "data": data} | sections
        made = Run(tmp_path / "run", Config.model_validate(values))
        align(made.config, made.folder, STAGES)
        return made, read_json(made.folder / "summary.json")

    return run


QUICK = {"rankings_per_step": 8, "optimizer": {"learning_rate": 1e-3, "micro_batch_tokens": 256}}


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run.folder / "dpo" / "metrics.jsonl") if "loss" in row]


def test_kto_learns_from_labelled_answers_and_rankings(
    trained: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    kto = {"objective": "kto", "kto": {"desirable_weight": 1.5}, "epochs": 2}
    looks = {"validate_every": 3, "keep": "best"}
    run, summary = trained("labels pairs", dpo=QUICK | kto | looks)
    counts, prepared = summary["dpo"], summary["prepare"]
    # Some are too long for the context.
    assert 20 < prepared["labelled"] + prepared["labelled_heldout"] <= 40
    assert counts["from_rankings"] == prepared["rankings"] == counts["middle_answers_left_out"]
    assert counts["labelled"] == prepared["labelled"] + 2 * counts["from_rankings"]
    assert counts["good"] == counts["bad"] == counts["labelled"] / 2
    assert counts["heldout_labelled"] == prepared["labelled_heldout"] + 2 * prepared["heldout"]
    steps = steps_of(run)
    # The policy is the reference: each answer stands at its reference point, 0.
    assert steps[0]["reference_point"] == 0 and steps[0]["loss"] == pytest.approx(0.625)
    assert all({"reward_good", "reward_bad"} <= row.keys() for row in steps), "both in each step"
    assert steps[-1]["reward_good"] > steps[-1]["reward_bad"]
    looked = {row["step"]: row["heldout_auc"] for row in steps if "heldout_auc" in row}
    best = max(looked, key=lambda step: looked[step])
    assert len(looked) > 1 and counts["kept_step"] == best
    assert counts["auc"] == pytest.approx(looked[best])
    told = capsys.readouterr().out
    assert "rankings gave their best as good and their worst as bad" in told
    assert "all good answers weigh 1.5 times as much as all bad ones" in told
    page = write_report(run).read_text()
    assert "loss and held-out figures of dpo" in page and "reference point" in page


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["orpo", "simpo", "ipo"])
def test_other_kin_learn_from_rankings_and_count_the_labels(
    trained: Callable[..., Any], objective: str
) -> None:
    start = {"start": "base"} if objective == "orpo" else {}
    run, summary = trained(
        "labels pairs", dpo=QUICK | {"objective": objective, "epochs": 6} | start
    )
    steps, counts = steps_of(run), summary["dpo"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert counts["labelled_left_out"] == summary["prepare"]["labelled"] > 0
    assert counts["rankings"] == summary["prepare"]["rankings"] and counts["heldout_rankings"] > 0
    assert 0 <= counts["pair_accuracy"] <= 1
    assert ("sft_loss" in counts) == ("odds_loss" in counts) == (objective == "orpo")
    assert ("best_logprob" in counts) == (objective != "ipo")


@pytest.mark.slow
def test_the_reward_stage_counts_labels_and_leaves_them(trained: Callable[..., Any]) -> None:
    _, summary = trained("labels pairs", reward=QUICK)
    assert summary["reward"]["labelled_left_out"] == summary["prepare"]["labelled"] > 0
