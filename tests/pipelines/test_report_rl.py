"""The report of runs that hold only RL: which curves, the phases, transcripts by token, and the
page in a browser.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.load import dump
from rayward.pipelines.cli import main
from rayward.pipelines.report.rl import algorithms, panels, phases_html
from rayward.pipelines.report.transcripts import level_of, transcripts_html
from rayward.pipelines.run.files import write_jsonl
from rayward.pipelines.run.folder import Run

EVIL = "</i><script>window.bad=1</script><img src=x onerror='window.bad=2'>"
WORDS = "The capital of that country , as far as I know , is a city with many old bridges .".split()
FIGURES = {
    "score": 1.5,
    "reward": 1.2,
    "kl": 3.0,
    "kl_k3": 0.02,
    "entropy": 2.2,
    "policy/clipfrac": 0.1,
    "policy/approx_kl": 0.01,
    "policy/ratio_max": 1.8,
    "policy/inverse_ratio_max": 1.6,
    "explained_variance": 0.4,
    "advantage_mean": 0.0,
    "advantage_std": 0.9,
    "advantage_min": -2.0,
    "advantage_max": 2.5,
    "equal_groups": 0.25,
    "length": 18.0,
    "length_max": 40,
    "finished": 0.95,
    "mismatch_mean": 1e-6,
    "mismatch_max": 1e-5,
    "mismatch_k3": 1e-9,
    "mismatch_factor": 1.0001,
}
TIME = {
    "iteration_s": 8.0,
    "generate_s": 4.0,
    "reward_s": 1.0,
    "policy_update_s": 2.0,
    "transfer_s": 0.25,
    "outside_s": 0.5,
    "idle_s": {"rollout": 4.0, "policy": 5.5},
    "samples_per_s": 64.0,
    "generated_tokens_per_s": 1234.5,
    "training_tokens_per_s": 2000.0,
    "peak_share": 0.125,
    "overhead_share": 0.07,
    "transfer_bytes_per_s": 1e9,
}


def answer(index: int, iteration: int, hostile: bool = False) -> dict[str, Any]:
    pieces = [EVIL if hostile and place == 2 else f" {word}" for place, word in enumerate(WORDS)]
    kl = [(place % 9 - 4) * 0.25 * (1 + iteration) for place in range(len(pieces))]
    return {
        "prompt_id": f"p{index}",
        "prompt": EVIL if hostile else "What is the capital?",
        "answer": "".join(pieces),
        "score": None if index == 3 else 0.1 * index,
        "tokens": len(pieces),
        "finished": index != 1,
        "pieces": pieces,
        "kl": kl,
        "advantages": [0.5] * len(pieces),
    }


def spans(iteration: int) -> dict[str, Any]:
    at = 8.0 * iteration
    parts = [
        ("rollout", 0, "generate", 0, 4),
        ("rollout", 1, "generate", 0, 3.2),
        ("reward", 0, "score", 2, 4.5),
        ("reference", 0, "logprobs", 2.5, 4.6),
        ("critic", 0, "values", 3, 4.7),
        ("policy", 0, "logprobs", 3, 4.8),
        ("driver", 0, "advantages", 4.8, 5),
        ("critic", 0, "update", 5, 6.5),
        ("policy", 0, "update", 5, 7.2),
        ("policy", 0, "send_weights", 7.3, 7.6),
        ("rollout", 0, "receive_weights", 7.3, 7.6),
    ]
    rows = [
        dict(zip(("role", "rank", "name", "start", "end"), part, strict=True)) for part in parts
    ]
    moved = [row | {"start": at + row["start"], "end": at + row["end"]} for row in rows]
    return {"iteration": iteration, "begun": at, "ended": at + 8, "spans": moved}


def learn(folder: Path, iterations: int, new: bool = True) -> None:
    """An algorithm's folder as RL leaves it; not `new`: as it was without spans and without
    tokens.
    """
    (folder / "transcripts").mkdir(parents=True)
    figures = (
        FIGURES
        if new
        else {name: FIGURES[name] for name in ("score", "reward", "kl", "length", "entropy")}
    )
    time = TIME if new else {"generate_s": 3.0, "score_s": 1.0, "update_s": 4.0}
    rows = [
        {
            "step": k,
            **{name: value * (1 + 0.1 * k) for name, value in figures.items()},
            "time": time,
        }
        for k in range(iterations)
    ]
    write_jsonl(folder / "metrics.jsonl", rows)
    for k in range(iterations):
        answers = [answer(index, k, hostile=index == 0) for index in range(12)]
        for row in answers if not new else answers[8:]:
            for name in ("pieces", "kl", "advantages"):
                del row[name]
        write_jsonl(folder / "transcripts" / f"{k:05d}.jsonl", answers)
    if new:
        write_jsonl(folder / "spans.jsonl", [spans(k) for k in range(iterations)])


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> Path:
    """The page of a run of which only RL is there: a new one, one of an algorithm that the config
    lacks, an old one.
    """
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(dump(tiny_config()))
    learn(folder / "rl" / "ppo", 30)
    learn(folder / "rl" / "newer", 1)
    learn(folder / "rl" / "apa", 3, new=False)
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


def test_algorithms_are_found_in_the_folder(
    page_path: Path, tiny_config: Any, tmp_path: Path
) -> None:
    assert algorithms(Run(page_path.parent, tiny_config())) == ["ppo", "apa", "newer"]
    (tmp_path / "rl" / "ppo").mkdir(parents=True)
    (tmp_path / "rl" / "ppo" / "metrics.jsonl").touch()
    assert algorithms(Run(tmp_path, tiny_config())) == [], (
        "killed before its first iteration was over"
    )


def test_panels_are_those_of_the_figures_that_are_there() -> None:
    assert [len(curves) for _, curves in panels([FIGURES])] == [
        2,
        1,
        1,
        1,
        1,
        1,
        2,
        1,
        4,
        1,
        2,
        1,
        3,
        1,
    ]
    some = panels([{"score": 1.0, "kl": None}, {"score": 2.0, "policy/clipfrac": 0.5}])
    assert [title for title, _ in some] == ["reward of an answer", "share of tokens clipped"]
    assert some[0][1] == {"as scored": [1.0, 2.0]}
    (clipped,) = some[1][1].values()
    assert clipped[0] != clipped[0] and clipped[1] == 0.5


def test_phases_are_medians_and_shares_of_the_iteration() -> None:
    times = [TIME | {"generate_s": seconds} for seconds in (1.0, 4.0, 5.0)]
    shown = phases_html(times)
    for told in (
        "8 s, 64.0 samples/s, 1,234 generated tokens/s, 2,000 training tokens/s, 12.5% of the "
        "peak FLOP/s, 7.0% outside generation, scoring and training. Phases",
        '<td>generate</td><td class="bar"><i style="width:50.0%"></i></td><td class="n">50.0%</td>',
        '<td>transfer</td><td class="bar"><i style="width:3.1%">',
        "<td>no actor at work</td>",
        '<td>idle: policy</td><td class="bar"><i style="width:68.8%">',
    ):
        assert told in shown
    assert shown.count("<tr>") == 4 + 1 + 2, "a rate is no phase"
    old = phases_html(
        [
            {"generate_s": 3.0, "score_s": 1.0},
            {"generate_s": 3.0, "score_s": 1.0, "transfer_s": 4.0},
        ]
    )
    assert "Median iteration: 8 s." in old and "<td>transfer</td>" in old and "samples/s" not in old
    assert phases_html([]) == ""


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.0, ""),
        (0.09, ""),
        (-0.09, ""),
        (0.1, "more1"),
        (-0.1, "less1"),
        (0.5, "more2"),
        (1.0, "more3"),
        (-2.9, "less3"),
        (3.0, "more4"),
        (-80.0, "less4"),
        (float("nan"), ""),
    ],
)
def test_colours_of_tokens(kl: float, expected: str) -> None:
    assert level_of(kl) == expected


@pytest.mark.parametrize(
    ("iterations", "shown"),
    [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (30, [0, 7, 14, 22, 29]), (101, [0, 25, 50, 75, 100])],
)
def test_transcripts_are_of_the_first_the_middle_and_the_last_iteration(
    iterations: int, shown: list[int], tmp_path: Path
) -> None:
    for k in range(iterations):
        write_jsonl(tmp_path / f"{k:05d}.jsonl", [answer(index, k) for index in range(10)])
    made = transcripts_html(tmp_path)
    assert [f"<summary>iteration {k}:" in made for k in range(iterations)] == [
        k in shown for k in range(iterations)
    ]
    assert made.count('class="said"') == 8 * len(shown) and made.count("legend") == 1


def test_a_long_answer_is_cut_and_lists_that_differ_are_an_error(tmp_path: Path) -> None:
    row = answer(0, 0) | {"pieces": ["a"] * 450, "kl": [0.2] * 450, "advantages": None}
    write_jsonl(tmp_path / "00000.jsonl", [row])
    made = transcripts_html(tmp_path)
    assert (
        made.count('<i class="more1" title="KL 0.20">a</i>') == 400 and "(50 more tokens)" in made
    )
    assert "KL 90.00 nats" in made, "of the whole answer"
    write_jsonl(tmp_path / "00000.jsonl", [row | {"kl": [0.2]}])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        transcripts_html(tmp_path)
    assert transcripts_html(tmp_path / "none") == ""


def test_the_report_leaves_a_trace_where_there_are_spans(page_path: Path) -> None:
    trace = json.loads((page_path.parent / "rl" / "ppo" / "trace.json").read_text())
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == 30 * 12
    assert not (page_path.parent / "rl" / "apa" / "trace.json").exists()
    page = page_path.read_text()
    assert (
        page.count("<h3>") == 3
        and page.count("data:image/png;base64") == 5
        and "not finished" in page
    )


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(browser: Any, page_path: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    context.set_offline(True)
    page, asked, problems = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(page_path.as_uri())
    for fold in page.locator("details").all():
        fold.locator("summary").click()
    assert problems == [] and page.evaluate("window.bad") is None
    assert all(url == page_path.as_uri() or url.startswith("data:") for url in asked)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 300)"
    )
    tokens = page.locator(".tokens i")
    assert tokens.count() == (5 + 1) * 8 * len(WORDS)
    assert (
        page.locator("script, .tokens img").count() == 0
        and EVIL in page.locator(".tokens").first.inner_text()
    )
    colours = {
        name: page.locator(f".tokens i.{name}").first.evaluate(
            "token => getComputedStyle(token).backgroundColor"
        )
        for name in ("more1", "more3", "less3")
    }
    red, blue = "225, 50, 50", "50, 110, 255"
    assert colours == {
        "more1": f"rgba({red}, 0.16)",
        "more3": f"rgba({red}, 0.5)",
        "less3": f"rgba({blue}, 0.5)",
    }
    dark = page.evaluate("getComputedStyle(document.body).color") == "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    context.close()


def test_a_run_without_any_figures_is_an_error(
    tmp_path: Path, tiny_config: Any, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text(dump(tiny_config()))
    assert main(["report", str(tmp_path)]) == 1
    assert "holds neither summary.json nor figures in rl/*/metrics.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
