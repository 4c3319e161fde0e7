"""`rayward reward-eval`: its figures against plain transformers and by hand, its page in a browser,
and wrong data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rayward.actors.models.load import load_scalar, save_model
from rayward.data.record_json import to_json
from rayward.data.records import Preference, Ranking, Turn
from rayward.data.toy.toyworld import rankings
from rayward.pipelines.cli import main
from rayward.pipelines.rows.renderer import check_vocabulary

pytestmark = pytest.mark.usefixtures("local_ray")
OFFSET = 0.75


@pytest.fixture(scope="module")
def reward_folder(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny reward model, with an offset of its scores."""
    folder = tmp_path_factory.mktemp("offset") / "model"
    classifier = load_scalar(tiny_models.reward, "float32").classifier
    classifier.config.score_offset = OFFSET
    save_model(classifier, classifier.state_dict(), tiny_models.tokenizer, folder)
    return str(folder)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def evaluated(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    assert main(["reward-eval", *arguments, "--out", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "report.json").read_text())


def plain_scores(folder: str, rows: list[Any]) -> list[list[float]]:
    """Scores of every ranking's answers by transformers alone, one row at a time, with the
    tokenizer's own template.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in rows:
        asked = [{"role": turn.role, "content": turn.content} for turn in row.turns]
        talks = [[*asked, {"role": "assistant", "content": answer}] for answer in row.answers]
        ids = [
            tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True).input_ids
            for talk in talks
        ]
        with torch.no_grad():
            found.append([float(model(input_ids=row_1T).logits) for row_1T in ids])
    return found


def test_its_scores_are_those_of_plain_transformers_less_the_offset(
    reward_folder: str, tiny_models: Any
) -> None:
    row = torch.arange(3, 20)[None]
    plain = AutoModelForSequenceClassification.from_pretrained(
        reward_folder, dtype=torch.float32
    ).eval()
    chosen = torch.zeros_like(row, dtype=torch.bool)
    chosen[0, -1] = True
    with torch.no_grad():
        ours, theirs = (
            load_scalar(reward_folder, "float32")(row, chosen),
            plain(input_ids=row).logits,
        )
    assert float(ours) == pytest.approx(float(theirs) - OFFSET, abs=1e-5)
    assert load_scalar(tiny_models.reward, "float32").offset == 0


def test_its_figures_are_those_of_plain_scores(
    reward_folder: str, tmp_path: Path, capsys: Any
) -> None:
    rows = rankings(12, 4, 0.0, seed=2)[0]
    found = evaluated(
        tmp_path, reward_folder, write(tmp_path / "r.jsonl", list(map(to_json, rows)))
    )
    scores = plain_scores(reward_folder, rows)
    gaps = [
        (np.sign(scores[r][i] - scores[r][j]), row.ranks[j] - row.ranks[i] if row.ranks else j - i)
        for r, row in enumerate(rows)
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    untied = [sign for sign, gap in gaps if gap]
    of = found["sources"]["all"]
    assert of["accuracy"]["pairs"] == len(untied)
    assert of["accuracy"]["mean"] == pytest.approx(np.mean([(sign + 1) / 2 for sign in untied]))
    assert of["accuracy"]["low"] <= of["accuracy"]["mean"] <= of["accuracy"]["high"]
    told = capsys.readouterr().out
    assert f"{of['accuracy']['mean']:.3f}" in told and "length-matched" in told


def test_the_same_model_as_second_agrees_with_itself_and_every_source_has_its_figures(
    reward_folder: str, tiny_models: Any, tmp_path: Path
) -> None:
    first, second = (list(map(to_json, rankings(4, 4, 0.0, seed)[0])) for seed in (1, 2))
    for row in second:  # ties stand in an order of their own, which must be the same for both
        row |= {"source": "other", "ranks": [1, 2, 2, 2]}
    data = write(tmp_path / "two.jsonl", first + second)
    found = evaluated(tmp_path, reward_folder, data, "--second", tiny_models.reward)
    assert set(found["sources"]) == {"all", "toyworld", "other"}
    assert all(of["agreement"] == 1 for of in found["sources"].values())
    assert sum(found["sources"][name]["rankings"] for name in ("toyworld", "other")) == 8


def test_rewardbench_gives_subsets_and_section_averages(reward_folder: str, tmp_path: Path) -> None:
    subsets = {
        "alpacaeval-easy": 3,
        "mt-bench-easy": 1,
        "hep-python": 2,
        "math-prm": 2,
        "donotanswer": 1,
    }
    pairs = [
        {
            "prompt": f"Question {i} of {name}?",
            "chosen": "Yes, it is.",
            "rejected": f"no {i}",
            "subset": name,
        }
        for name, count in subsets.items()
        for i in range(count)
    ]
    found = evaluated(tmp_path, reward_folder, write(tmp_path / "bench.jsonl", pairs))
    mean = {name: found["sources"][f"rewardbench/{name}"]["accuracy"]["mean"] for name in subsets}
    sections = {
        "chat": (3 * mean["alpacaeval-easy"] + mean["mt-bench-easy"]) / 4,
        "safety": mean["donotanswer"],
        "reasoning": (mean["hep-python"] + mean["math-prm"]) / 2,
    }
    sections["average of sections"] = sum(sections.values()) / 3
    assert found["sections"] == pytest.approx(sections)


def test_rewardbench_2_and_rm_bench_give_the_figures_of_plain_scores(
    reward_folder: str, tmp_path: Path, capsys: Any
) -> None:
    best_of = [
        {
            "id": str(n),
            "prompt": f"Question {n}?",
            "chosen": [f"Yes, {n}."],
            "rejected": [f"no {n}", f"I guess not, {n}", f"Maybe {n} or so."],
            "num_correct": 1,
            "num_incorrect": 3,
            "subset": ("Factuality", "Focus")[n % 2],
        }
        for n in range(8)
    ]
    long = best_of[0] | {"id": "9", "rejected": ["word " * 900, "no", "none"]}
    styles = [
        {
            "prompt": f"How is {n}?",
            "chosen": [f"Good {n}.", f"It is good, {n}.", f"* **good** {n}"],
            "rejected": [f"Bad {n}.", f"It is bad, {n}.", f"* **bad** {n}"],
            "domain": "chat",
        }
        for n in range(5)
    ]
    data = [
        write(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(([*best_of, long], styles))
    ]
    found = evaluated(tmp_path, reward_folder, *data, "--context", "256")["benches"]

    def plain(rows: list[dict[str, Any]]) -> list[list[float]]:
        asked = [Turn("user", row["prompt"]) for row in rows]
        answers = [(*row["chosen"], *row["rejected"]) for row in rows]
        return plain_scores(
            reward_folder,
            [Ranking((turn,), each) for turn, each in zip(asked, answers, strict=True)],
        )

    best = np.array([scores[0] > max(scores[1:]) for scores in plain(best_of)])
    of = found["RewardBench 2"]
    shares = {name: figure["mean"] for name, figure in of["subsets"].items()}
    assert shares == {"Factuality": best[::2].mean(), "Focus": best[1::2].mean()}
    assert of["mean"]["mean"] == pytest.approx(best.mean()) and of["mean"]["n"] == 8
    above = np.array([[r > w for r in s[:3] for w in s[3:]] for s in plain(styles)])
    matrix = above.mean(axis=0).reshape(3, 3)
    by_level = {name: level["mean"] for name, level in found["RM-Bench"]["all"].items()}
    assert by_level["hard"] == pytest.approx(matrix[np.triu_indices(3, 1)].mean())
    assert by_level["normal"] == pytest.approx(np.diag(matrix).mean())
    assert by_level["easy"] == pytest.approx(matrix[np.tril_indices(3, -1)].mean())
    told, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for text in (told, page):
        assert "RewardBench 2, score [95 %]" in text and "RM-Bench, accuracy [95 %]" in text
        assert "no row of Precise IF, Math, Safety, Ties" in text
    assert "row of a benchmark without the scores of all its answers" in told


def test_the_page_opens_without_a_network_and_fits_a_phone(
    reward_folder: str, tmp_path: Path, browser: Any
) -> None:
    rows = list(map(to_json, rankings(12, 4, 0.0, seed=2)[0]))
    rows[0]["source"] = "<img src=x onerror='window.bad=1'>"
    evaluated(tmp_path, reward_folder, write(tmp_path / "r.jsonl", rows))
    context = browser.new_context(viewport={"width": 390, "height": 800})
    context.set_offline(True)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert all(url.startswith("file://") for url in asked) and page.evaluate("window.bad") is None
    assert (
        page.locator("h2").all_text_contents()[0] == "all"
        and page.locator(".plot svg").count() == 3
    )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


# ---- wrong data
# --------------------------------------------------------------------------------------------

PAIR = {"prompt": "Why?", "chosen": "Because it is.", "rejected": "no"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (PAIR | {"rejected": " "}, "empty text"),
        (PAIR | {"rejected": "Because it is. "}, "identical"),
        (
            {"kind": "ranking", "turns": [{"role": "user", "content": "q"}], "answers": ["only"]},
            "too few answers",
        ),
        (PAIR | {"chosen": "word " * 900}, "fewer than two answers fit the context"),
    ],
)
def test_a_wrong_row_is_left_out_and_told_with_its_line_and_what_was_expected(
    row: dict[str, Any], told: str, reward_folder: str, tmp_path: Path, capsys: Any
) -> None:
    good = PAIR if "prompt" in row else to_json(rankings(1, 3, 0.0, 1)[0][0])
    found = evaluated(
        tmp_path, reward_folder, write(tmp_path / "d.jsonl", [good, row]), "--context", "256"
    )
    assert found["sources"]["all"]["rankings"] == 1
    (left,) = found["left_out_rows"]
    assert told in left["reason"] and "d.jsonl:2" in left["where"] and left["expected"]
    assert left["reason"] in capsys.readouterr().out


def test_where_nothing_is_left_it_says_why(reward_folder: str, tmp_path: Path, capsys: Any) -> None:
    assert (
        main(["reward-eval", reward_folder, write(tmp_path / "d.jsonl", [PAIR | {"rejected": ""}])])
        == 1
    )
    assert "no ranking can be scored" in (told := capsys.readouterr().err) and "d.jsonl:1" in told


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(
    tiny_models: Any, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.reward)
    check_vocabulary(tokenizer, tiny_models.reward)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(
        ValueError,
        match="embeddings for 300 tokens, but the tokenizer gives ids up to 300; .*extend",
    ):
        check_vocabulary(tokenizer, tiny_models.reward)
    from rayward.data.templates.template import TEMPLATES
    from rayward.data.templates.tokenizer import train_tokenizer

    other = train_tokenizer(
        ["zyx zyx zyx wvu wvu"], 280, TEMPLATES["openchat_3.5"].special_tokens, 448
    )
    with pytest.raises(
        ValueError, match=r"knows .* as token .*, but the tokenizer gives it id \d+"
    ):
        check_vocabulary(other, tiny_models.reward)


def test_a_margin_of_a_pair_is_the_distance_of_its_ranks() -> None:
    turns = rankings(1, 2, 0.0, 1)[0][0].turns
    assert Preference(turns, "a", "b", 1.5).as_ranking().ranks == (1.0, 2.5)
    assert Preference(turns, "a", "b").as_ranking().ranks is None
    best, worse = Preference(turns, "a", "b", 0.0).as_ranking().ranks or (0, 0)
    assert 0 < worse - best < 1e-5, "hardly better is better"
