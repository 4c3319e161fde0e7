"""The whole road, end to end, through the command line and on the real stack: Ray, DeepSpeed, vLLM,
Ray Serve.
"""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayward.configs.stages import STAGES
from rayward.data.toy import toyworld
from rayward.pipelines.report.judge_words import NOT_BETTER

TINY = Path(__file__).parents[1] / "tiny.yaml"
pytestmark = pytest.mark.timeout(1800)
TRAINED = ("sft", "reward", "sample", "dpo", "rl/ppo", "rl/apa")


def test_every_stage_leaves_its_figures(road: Path) -> None:
    summary = json.loads((road / "summary.json").read_text())
    assert set(STAGES) <= summary.keys()
    assert set(STAGES) <= summary["seconds"].keys() and summary["seconds"]["total"] > 0
    assert 0 < summary["peak_memory_bytes"] < 12 * 2**30
    for name in ("rejection", "dpo", "ppo", "apa"):
        rate = summary["evaluate"]["win_rate"][name]
        assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1 and rate["n"] == 24
    assert summary["dpo"]["rankings"] > 0 and 0 <= summary["dpo"]["pair_accuracy"] <= 1
    for name in ("ppo", "apa"):
        assert 0 <= summary["rl"][name]["mismatch_max"] < 1e-4
        assert math.isfinite(summary["rl"][name]["kl"])
    assert all(model["mismatch_max"] < 1e-4 for model in summary["evaluate"]["models"].values())
    assert 0.5 < summary["reward"]["noise_ceiling"] < 1
    assert summary["publish"]["answer"] and summary["publish"]["streamed_chunks"] > 1


def test_what_the_judge_is_worth_stands_beside_its_win_rates(road: Path) -> None:
    told = json.loads((road / "summary.json").read_text())["evaluate"]["judge_agreement"]
    longer, judge = told["judges"]
    held_out = len(rows_of(road / "prepare" / "heldout.jsonl"))
    # Four answers each, of which no two are tied: six pairs.
    assert told["labels"] == "held-out rankings" and told["pairs"] == min(200, 6 * held_out)
    assert judge["judge"] == "gold" and judge["missing"] == 0
    # The gold judge contradicts the noise of the labels and nothing else.
    assert judge["accuracy"]["mean"] > 0.6 > longer["accuracy"]["mean"]
    words = f"accuracy {judge['accuracy']['mean']:.3f} ["
    assert words in (road / "report.html").read_text() and words in (road / "log.txt").read_text()


@pytest.mark.slow
def test_suites_are_parts_of_a_run_that_go_on_from_their_caches(
    road: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    """Two models answer three questions in vLLM; the run's reward model and a function judge."""
    for stage in ("prepare", "sft", "reward", "sample"):
        (tmp_path / stage).symlink_to(road / stage)
    asked = [{"question_id": n, "turns": [f"What comes after {n}?"]} for n in range(3)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    suites = [
        {"name": "short", "suite": str(questions), "judge": "rayward.data.rules:length"},
        {"name": "ours", "suite": str(questions), "limit": 2, "judge": "reward"},
    ]
    for one in suites:
        one["answer_options"] = ["--model-request", '{"max_tokens": 8, "temperature": 0}']
    options = [
        *("--set", "rl=null", "--set", "dpo=null", "--set", "publish=null"),
        *("--set", f"evaluate.suites={json.dumps(suites)}"),
    ]
    rayward("evaluate", tmp_path, *options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name, count in (("short", 3), ("ours", 2)):
        found = summary["suites"][name]
        assert found["baseline"] == "sft" and set(found["models"]) == {"rejection"}
        rate = found["models"]["rejection"]
        assert 0 <= rate["low"] <= rate["win_rate"] <= rate["high"] <= 100
        assert rate["comparisons"] == count and found["judge_agreement"]["pairs"] > 0
    by_length = summary["suites"]["short"]["judge_agreement"]
    assert by_length["no_better_than_length"], "the longer answer is no better than itself"
    page = (tmp_path / "report.html").read_text()
    assert "<h2>short: " in page and NOT_BETTER in page
    cache = tmp_path / "evaluate" / "short" / "answers" / "sft" / "cache.jsonl"
    paid = cache.read_bytes()
    assert len(rows_of(cache)) == 4  # the form of the file, and an answer to each question
    told = rayward("evaluate", tmp_path, *options)
    assert "done before, nothing to do" in told
    # Made again, evaluate leaves the suites alone; one that is not whole asks for nothing anew.
    (tmp_path / "evaluate" / "short" / "manifest.json").unlink()
    rayward("evaluate", tmp_path, "--redo", "evaluate", *options)
    assert (tmp_path / "evaluate" / "ours" / "manifest.json").is_file()
    assert cache.read_bytes() == paid
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["suites"] == summary["suites"]


def test_every_stage_leaves_its_files(road: Path) -> None:
    for stage in (*TRAINED, "prepare", "evaluate", "publish"):
        assert (road / stage / "manifest.json").is_file(), stage
    for stage in TRAINED:
        assert (road / stage / "metrics.jsonl").stat().st_size > 0, stage
        assert list((road / stage / "tensorboard").glob("events*")), stage
        model = road / stage / "model"
        assert (model / "model.safetensors").is_file() and (model / "tokenizer.json").is_file(), (
            stage
        )
    page = (road / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", page), (
        "the page must open without a network"
    )
    assert (road / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_rl_is_watched_and_alarms_are_told(road: Path) -> None:
    """tiny.yaml takes answers that are cut for an alarm, and a model that has learnt nothing gives
    some.
    """
    held_out = {row["id"] for row in rows_of(road / "prepare" / "evaluation_prompts.jsonl")}
    told = json.loads((road / "summary.json").read_text())["rl"]
    page = (road / "report.html").read_text()
    assert (
        "<h2>Reward hacking</h2>" in page and "answers were cut at rollout.max_new_tokens" in page
    )
    log = (road / "log.txt").read_text()
    for name in ("ppo", "apa"):
        folder = road / "rl" / name
        metrics = rows_of(folder / "metrics.jsonl")
        looks = [rows_of(folder / "fixed" / f"{iteration:05d}.jsonl") for iteration in range(2)]
        assert len(looks[0]) == 4 and {row["prompt_id"] for row in looks[0]} <= held_out
        assert [row["prompt"] for row in looks[0]] == [row["prompt"] for row in looks[1]]
        assert [row["answer"] for row in looks[0]] != [row["answer"] for row in looks[1]]
        assert all(
            math.isfinite(row["score"]) and row["tokens"] > 0 for look in looks for row in look
        )
        assert metrics[0]["monitor/length_ratio"] == metrics[0]["monitor/distinct"] == 1
        for row in metrics:
            assert (
                row["monitor/truncated"] == 1 - row["finished"]
                and 0 < row["monitor/distinct_2"] <= 1
            )
            assert row["monitor/length_ratio"] == pytest.approx(
                row["length"] / metrics[0]["length"]
            )
        alarms = rows_of(folder / "alarms.jsonl")
        assert sum(row["monitor/alarms"] for row in metrics) == len(alarms) > 0
        first = next(alarm for alarm in alarms if alarm["name"] == "max_truncated")
        assert (
            first["value"]
            == metrics[first["iteration"]]["monitor/truncated"]
            > first["limit"]
            == 0.01
        )
        assert told[name]["alarms"]["max_truncated"]["first"] == first["iteration"]
        assert log.count(f"ALARM {name} iteration {first['iteration']}: truncated ") == 1


@pytest.mark.slow
def test_an_alarm_that_lasts_stops_the_stage_where_the_config_says_so(
    road: Path, tmp_path: Path
) -> None:
    for stage in ("prepare", "sft", "reward"):
        (tmp_path / stage).symlink_to(road / stage)
    settings = ("rl.algorithms=[ppo]", "rl.monitor.stop_on_alarm=true", "rl.monitor.patience=2")
    options = [part for setting in settings for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "rl",
        str(TINY),
        "--run",
        str(tmp_path),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert (
        "max_truncated for 2 iterations in a row" in done.stderr and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "rl" / "ppo" / "manifest.json").exists()
    assert len(rows_of(tmp_path / "rl" / "ppo" / "metrics.jsonl")) == 2, (
        "figures of the last iteration are there"
    )


def test_trained_weights_differ_from_where_they_started(road: Path) -> None:
    """A stage that saved what it loaded would pass every other check here."""
    from safetensors.torch import load_file

    start = load_file(road / "sft" / "model" / "model.safetensors")
    for stage in ("sample", "dpo", "rl/ppo", "rl/apa"):
        after = load_file(road / stage / "model" / "model.safetensors")
        assert after.keys() == start.keys()
        assert all(not after[name].equal(start[name]) for name in start), stage


def test_the_best_answer_is_the_one_kept(road: Path) -> None:
    rows = rows_of(road / "sample" / "samples.jsonl")
    assert len(rows) == 24 and any(row["kept"] for row in rows)
    for row in rows:
        assert len(row["scores"]) == 4
        if row["finished"] == 4:
            assert row["k_index"] == row["scores"].index(max(row["scores"]))
        assert len(row["ended"]) == 4 and sum(row["ended"]) == row["finished"]
        assert row["ended"][row["k_index"]] or not row["kept"]
    (drawn,) = rows_of(road / "sample" / "draw" / "metrics.jsonl")
    share = drawn["finished_share"]
    assert share == pytest.approx(sum(row["finished"] for row in rows) / (24 * 4))
    told = (
        (road / "log.txt")
        .read_text()
        .count(f"sample: only {share:.1%} of 96 answers ended by themselves")
    )
    assert told == (2 if share < 0.5 else 0), "after the first draw, and at the end"


def test_the_same_command_again_does_nothing(road: Path, rayward: Callable[..., str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in road.rglob("manifest.json")}
    out = rayward("align", road)
    assert out.count("done before, nothing to do") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in road.rglob("manifest.json")} == before


def test_a_changed_setting_is_refused_and_nothing_is_lost(road: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "sft",
        str(TINY),
        "--run",
        str(road),
        "--set",
        "sft.epochs=3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "sft.epochs was 1, now 3" in done.stderr and "--redo" in done.stderr
    assert (road / "sft" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_published_model_stays_up_and_chats(road: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "publish",
        str(TINY),
        "--run",
        str(road),
        "--keep",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            told = next(line for line in server.stdout if line.startswith("serving"))
            url = told.split(" at ")[1].split(";")[0]
            chat = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "rayward.pipelines.cli",
                    "chat",
                    url,
                    "--max-tokens",
                    "8",
                    "--temperature",
                    "0",
                ],
                input="What color is grass?\n/new\nWhat color is grass?\n",
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=120) == 0
    answers = [line for line in chat.stdout.splitlines() if line.strip()]
    assert chat.returncode == 0, chat.stderr
    assert len(answers) == 2 and answers[0] == answers[1]  # greedy, and /new forgets the first turn


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world as files that people bring: several formats, most rows without an id."""
    root = tmp_path_factory.mktemp("files")
    said = {"user": "human", "assistant": "gpt"}
    rankings, _ = toyworld.rankings(120, 4, 0.1, seed=3)
    rows = {
        "chats": [
            {
                "conversations": [
                    {"from": said[turn.role], "value": turn.content} for turn in chat.turns
                ]
            }
            for chat in toyworld.demonstrations(300, seed=3)
        ],
        "ranked": [
            {
                "prompt": f"\n\nHuman: {ranking.turns[0].content}\n\nAssistant: ",
                "answers": [
                    {"answer": text, "rank": rank}
                    for rank, text in enumerate(ranking.answers, start=1)
                ],
            }
            for ranking in rankings
            if len(ranking.turns) == 1
        ],
        "asked": [
            {"instruction": prompt.turns[-1].content, "output": "Unused."}
            for prompt in toyworld.prompts(90, 3, "train")
            if len(prompt.turns) == 1
        ],
        "heldout": [
            {"instruction": prompt.turns[-1].content, "dataset": "toy"}
            for prompt in toyworld.prompts(80, 3, "evaluation")
            if len(prompt.turns) == 1
        ],
    }
    for name, made in rows.items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)))
    return root


@pytest.mark.slow
def test_the_road_on_files_with_a_reward_model_for_a_judge(
    files: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    lists = {
        "conversations": "chats",
        "preferences": "ranked",
        "prompts": "asked",
        "evaluation_prompts": "heldout",
    }
    settings = {
        "model.template": "vicuna_v1.1",
        "model.context_tokens": 160,
        "data.toyworld": "null",
        "data.root": files,
        "data.heldout_fraction": 0.25,
        "evaluate.judge": "reward_model",
        "evaluate.prompts": 20,
        "evaluate.temperature": 0.8,
        "rl.algorithms": "[apa]",
        "dpo.data": "samples",
        "dpo.start": "sample",
        "scoring.sources": "[{weight: 2}, {kind: function, target: 'scoring_functions:length', "
        "weight: -0.01}]",
        "scoring.functions": Path(__file__).parent,
        "rl.reward_scaling": "clip_then_std",
        "rl.length_penalty": 0.01,
        **{f"data.{name}": f"[{{path: {file}.jsonl}}]" for name, file in lists.items()},
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    rayward(
        "align",
        tmp_path,
        "--stages",
        ",".join(stage for stage in STAGES if stage != "publish"),
        *options,
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (
        summary["evaluate"]["judge"] == "reward_model"
        and summary["reward"]["judge"]["heldout_pairs"] > 0
    )
    for name in ("rejection", "dpo", "apa"):
        rate = summary["evaluate"]["win_rate"][name]
        assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1 and rate["n"] == 20
    assert all(model["mismatch_max"] < 1e-4 for model in summary["evaluate"]["models"].values())
    asked = {
        row["id"]: row["turns"][0]["content"]
        for row in rows_of(tmp_path / "prepare" / "prompts.jsonl")
    }
    sampled = rows_of(tmp_path / "sample" / "samples.jsonl")
    assert len({row["prompt_id"] for row in sampled}) == len(sampled) == 24
    assert all([asked[row["prompt_id"]]] == row["prompt"] for row in sampled)
    for row in rows_of(tmp_path / "rl" / "apa" / "transcripts" / "00000.jsonl"):
        assert asked[row["prompt_id"]] == row["prompt"]
    for row in rows_of(tmp_path / "rl" / "apa" / "metrics.jsonl"):
        assert math.isfinite(row["monitor/second_score"]) and row["monitor/second_drop"] >= 0
        said = 2 * row["sources/model"] - 0.01 * row["sources/function"]
        assert row["score"] == pytest.approx(said, abs=1e-4) and row["sources/function"] > 1
    state = json.loads((tmp_path / "rl" / "apa" / "reward_state.json").read_text())
    assert round(state["count"]) == 2 * 32 and state["var"] > 0
    (watched,) = (rows_of(path) for path in (tmp_path / "rl" / "apa" / "fixed").glob("00001.jsonl"))
    assert len(watched) == 4 and all(row["second"] != row["score"] for row in watched)
    curve = json.loads((tmp_path / "evaluate" / "curves.json").read_text())["apa"]
    assert [point["iteration"] for point in curve] == [0, 1] and all(
        math.isfinite(p["judge"]) for p in curve
    )


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_chat_says_when_nothing_answers() -> None:
    command = [sys.executable, "-m", "rayward.pipelines.cli", "chat", "http://127.0.0.1:9/v1"]
    done = subprocess.run(
        command, input="hi\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "nothing answers at http://127.0.0.1:9/v1" in done.stderr


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_metrics(
    road: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    """Also where RL is watched less: the fixed prompts leave no trace in what is learned."""
    settings = ("--set", "rl.monitor.prompts=0", "--set", "rl.algorithms=[ppo]")
    rayward("align", tmp_path, "--stages", "prepare,sft,reward,sample,rl", *settings)
    model = "rl/ppo/model/model.safetensors"
    assert (tmp_path / model).read_bytes() == (road / model).read_bytes()
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("metrics.jsonl"))
    assert len(files) >= 5
    for file in files:
        first, second = (_without_time(folder / file) for folder in (road, tmp_path))
        assert first and first == second, file
    first, second = (
        json.loads((run / "reward" / "manifest.json").read_text())["metrics"]
        for run in (road, tmp_path)
    )
    assert first == second


def _without_time(path: Path) -> list[dict]:
    rows = rows_of(path)
    for row in rows:
        row.pop("time", None)
    return rows
