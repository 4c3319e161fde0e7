"""`rayward judge pairwise` against a real HTTP server that judges by rules: orders, draws, caches,
kills, budgets.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main
from tests.pipelines.judge_server import JudgeServer, user_text

ROOT = Path(__file__).parents[2]
SHOWN = re.compile(
    r"\[Answer of assistant [1A]\]\n(.*?)\n\[End.*\[Answer of assistant [2B]\]\n(.*?)\n\[End", re.S
)


def outputs(path: Path, name: str, texts: list[str]) -> Path:
    """AlpacaEval's model_outputs.json."""
    rows = [
        {"dataset": "odd even".split()[n % 2], "instruction": f"Question {n}?", "output": text}
        | {"generator": name}
        for n, text in enumerate(texts)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def two(folder: Path, count: int) -> list[str]:
    """Answers of a model, the longer ones for even questions, and of a baseline."""
    model = [f"model {n} " + "x" * (20 if n % 2 == 0 else 5) for n in range(count)]
    baseline = [f"base {n} " + "x" * 10 for n in range(count)]
    return [
        str(outputs(folder / "model.json", "mine", model)),
        str(outputs(folder / "baseline.json", "theirs", baseline)),
    ]


def shown(request: dict[str, Any]) -> tuple[str, str]:
    found = SHOWN.search(user_text(request))
    assert found, user_text(request)
    return found[1], found[2]


def content(request: dict[str, Any]) -> str:
    """Prefers the longer answer, wherever it stands."""
    first, second = (text.count("x") for text in shown(request))
    return f"Reasons: 3 4\n[{9 if first > second else 2}, {9 if second > first else 2}]"


def always_first(request: dict[str, Any]) -> str:
    return "The first is better, to my mind.\n[9, 3]"


def judge(answers: list[str], server: JudgeServer, out: Path, *more: str) -> int:
    return main(["judge", "pairwise", *answers, "--judge", server.model, "--out", str(out), *more])


def verdicts(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def summary(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return value


def test_what_the_judge_says_is_the_verdict_whatever_was_shown_first(
    tmp_path: Path, serve: Any
) -> None:
    server, answers, out = serve(content), two(tmp_path, 10), tmp_path / "out"
    assert judge(answers, server, out, "--judge-price", "1", "2") == 0
    found = verdicts(out)
    assert [row["preference"] for row in found] == [2.0, 1.0] * 5
    assert [row["scores"] for row in found] == [[2.0, 9.0], [9.0, 2.0]] * 5
    assert {row["conflict"] for row in found} == {False}
    first = found[0]
    assert (first["generator_1"], first["generator_2"]) == ("theirs", "mine")
    assert (first["output_1"], first["output_2"]) == ("base 0 xxxxxxxxxx", "model 0 " + "x" * 20)
    assert (first["instruction"], first["question_id"]) == ("Question 0?", 0)
    assert (first["category"], first["annotator"]) == ("odd", "rules/vicuna")
    assert [review["order"] for review in first["reviews"]] == ["model first", "baseline first"]
    # Of the baseline and the model, in both orders.
    assert [review["scores"] for review in first["reviews"]] == [[2.0, 9.0], [2.0, 9.0]]
    made = summary(out)
    assert (made["win_rate"], made["wins"], made["ties"], made["losses"]) == (50.0, 5, 0, 5)
    assert (made["conflict_rate"], made["both_orders"], made["unreadable"]) == (0.0, 10, 0)
    assert made["by_category"]["odd"]["win_rate"] == 100.0
    assert made["asked"]["price"] == pytest.approx(20 * (100 * 1 + 10 * 2) / 1e6)
    assert len(server.seen) == 20 and {r["temperature"] for r in server.seen} == {0.2}
    # Again: nothing is asked, and the files are the same.
    before = (out / "verdicts.jsonl").read_bytes()
    assert judge(answers, server, out, "--judge-price", "1", "2") == 0
    assert len(server.seen) == 20 and (out / "verdicts.jsonl").read_bytes() == before
    assert summary(out)["asked"]["this_run"]["requests"] == 0
    # Other settings are other replies.
    assert judge(answers, server, out, "--judge-request", '{"temperature": 0}') == 0
    assert len(server.seen) == 40


def test_the_first_questions_alone_are_asked_about(tmp_path: Path, serve: Any) -> None:
    server, answers, out = serve(content), two(tmp_path, 10), tmp_path / "out"
    assert judge(answers, server, out, "--first", "3") == 0
    assert [row["question_id"] for row in verdicts(out)] == [0, 1, 2] and len(server.seen) == 6
    assert summary(out)["lacking"] == []
    # What is asked about more of them goes on from the cache.
    assert judge(answers, server, out, "--first", "5") == 0
    assert len(verdicts(out)) == 5 and len(server.seen) == 10
    assert judge(answers, server, out, "--first", "0") == 2


def test_identical_answers_are_draws_without_a_call(tmp_path: Path, serve: Any) -> None:
    server, out = serve(always_first), tmp_path / "out"
    texts = [f"answer {n}" for n in range(7)]
    answers = [str(outputs(tmp_path / f"{name}.json", name, texts)) for name in ("a", "b")]
    assert judge(answers, server, out) == 0
    assert summary(out)["win_rate"] == 50.0 and not server.seen
    assert [row["preference"] for row in verdicts(out)] == [1.5] * 7


@pytest.mark.parametrize("rules", ["vicuna", "mt_bench", "arena_hard"])
def test_a_judge_that_always_says_first_gives_half_and_nothing_but_conflicts(
    rules: str, tmp_path: Path, serve: Any
) -> None:
    said = {"vicuna": "[9, 3]", "mt_bench": "[[A]]", "arena_hard": "[[A>>B]]"}[rules]
    server, out = serve(lambda request: f"Reasons.\n{said}"), tmp_path / "out"
    assert judge(two(tmp_path, 12), server, out, "--rules", rules) == 0
    made = summary(out)
    assert (made["win_rate"], made["conflict_rate"], made["ties"]) == (50.0, 100.0, 12)


def test_the_order_that_is_drawn_follows_from_the_seed(tmp_path: Path, serve: Any) -> None:
    server, answers = serve(always_first), two(tmp_path, 80)
    orders = []
    for seed in ("0", "0", "1"):
        out = tmp_path / f"out{len(orders)}"
        assert judge(answers, server, out, "--rules", "ultralm", "--seed", seed) == 0
        made = summary(out)
        assert 30 < made["win_rate"] < 70 and made["conflict_rate"] is None
        orders.append([row["reviews"][0]["order"] for row in verdicts(out)])
    assert orders[0] == orders[1] != orders[2] and len(server.seen) == 240
    assert all(len(row["reviews"]) == 1 for row in verdicts(tmp_path / "out0"))
    server.rule = content
    assert judge(answers, server, tmp_path / "new", "--rules", "ultralm", "--seed", "7") == 0
    assert [row["preference"] for row in verdicts(tmp_path / "new")] == [2.0, 1.0] * 40


def test_samples_have_seeds_of_their_own_and_their_mean_counts(tmp_path: Path, serve: Any) -> None:
    seeds = Counter[int]()

    def by_seed(request: dict[str, Any]) -> str:
        seeds[request["seed"]] += 1
        score = {5: 10, 6: 1, 7: 1}[request["seed"]]
        return f"evidence\n[{score}, 3]"

    server, out = serve(by_seed), tmp_path / "out"
    more = ("--rules", "faireval", "--seed", "5")
    assert judge(two(tmp_path, 4), server, out, *more) == 0
    assert seeds == {5: 8, 6: 8, 7: 8}
    # (10 + 1 + 1) / 3 = 4 for what is shown first and 3 for the other: 3.5 each over both orders.
    assert [row["scores"] for row in verdicts(out)] == [[3.5, 3.5]] * 4
    assert summary(out)["conflict_rate"] == 100.0


def test_unreadable_replies_are_counted_and_out_of_the_denominator(
    tmp_path: Path, serve: Any
) -> None:
    def sometimes(request: dict[str, Any]) -> str:
        return "No idea." if "Question 3?" in user_text(request) else content(request)

    server, out = serve(sometimes), tmp_path / "out"
    assert judge(two(tmp_path, 4), server, out) == 0
    assert [row["preference"] for row in verdicts(out)] == [2.0, 1.0, 2.0, None]
    made = summary(out)
    assert made["win_rate"] == pytest.approx(200 / 3) and made["unreadable"] == 1
    assert made["asked"]["unreadable"] == 2
    assert verdicts(out)[3]["reviews"][0]["text"] == "No idea."


def test_a_judge_that_answers_garbage_stops_within_what_is_allowed(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    server, answers, out = serve(lambda request: "Garbage!"), two(tmp_path, 100), tmp_path / "out"
    more = ("--unreadable", "20", "--concurrency", "8")
    assert judge(answers, server, out, *more) == 1
    assert (
        "21 replies of rules cannot be read, and --unreadable allows 20" in capsys.readouterr().err
    )
    assert 21 <= len(server.seen) <= 20 + 8 + 1
    asked = len(server.seen)
    # What is known to be garbage is not asked for again.
    assert judge(answers, server, out, *more) == 1 and len(server.seen) == asked
    assert not (out / "verdicts.jsonl").exists()


def test_a_budget_is_never_passed(tmp_path: Path, serve: Any, capsys: Any) -> None:
    server, answers, out = serve(content, 0.005), two(tmp_path, 100), tmp_path / "out"
    price = (100 * 10 + 10 * 20) / 1e6  # of a reply, in the server's count
    more = ("--judge-price", "10", "20", "--judge-request", '{"max_tokens": 50}')
    budget = 60.5 * price
    assert judge(answers, server, out, *more, "--budget", f"{budget}") == 1
    assert "stopped before the budget" in capsys.readouterr().out
    spent = len(server.seen) * price
    assert 0 < spent <= budget
    made = summary(out)
    assert made["asked"]["price"] == pytest.approx(spent) and made["missing"] > 0
    # What the earlier run paid counts: it goes on where the first one ended.
    assert judge(answers, server, out, *more, "--budget", f"{budget}") == 1
    assert len(server.seen) * price <= budget
    assert judge(answers, server, out, *more, "--budget", "1") == 0
    assert len(server.seen) == 200 and summary(out)["missing"] == 0


def test_a_budget_holds_where_tokens_are_not_counted(tmp_path: Path, serve: Any) -> None:
    server, out = serve(lambda request: {"content": "[1, 2]", "usage": None}), tmp_path / "out"
    more = ("--judge-price", "1", "1", "--budget", "0.1")
    assert judge(two(tmp_path, 200), server, out, *more) == 1
    # A prompt of more than 600 bytes, and up to 1024 tokens of reply.
    assert 0 < len(server.seen) < 0.1 / (1600 / 1e6)


def test_what_cannot_be_is_told_before_anything_is_asked(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    server, answers, out = serve(content), two(tmp_path, 3), tmp_path / "out"
    other = outputs(tmp_path / "other.json", "third", ["x"])
    rows = json.loads(other.read_text())
    rows[0]["instruction"] = "Something else"
    other.write_text(json.dumps(rows))
    for arguments, told in (
        ((*answers, "--budget", "1"), "needs the prices"),
        ((*answers, "--samples", "0"), "--samples is 0"),
        ((*answers, "--prompts", answers[0]), "prompt_template: found None, expected text"),
        ((str(other), answers[1]), "answer none of the 3 questions both"),
        ((answers[0], str(tmp_path / "none.json")), "no such file"),
    ):
        assert judge(list(arguments[:2]), server, out, *arguments[2:]) == 2, told
        assert told in capsys.readouterr().err
    assert not server.seen


def test_two_commands_on_one_cache_are_refused(tmp_path: Path, serve: Any, capsys: Any) -> None:
    server, answers, out = serve(content, 0.05), two(tmp_path, 60), tmp_path / "out"
    process = subprocess.Popen(
        command(answers, server, out, "--concurrency", "1"), env=environment()
    )
    try:
        wait_until(lambda: len(server.seen) > 2)
        assert judge(answers, server, out) == 2
        assert "another run is writing it" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


def command(answers: list[str], server: JudgeServer, out: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "rayward.pipelines.cli", "judge", "pairwise", *answers]
    return [*start, "--judge", server.model, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}


def wait_until(there: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def asked_of(request: dict[str, Any]) -> tuple[str, bool]:
    """Which question, and whether the model's answer stands first."""
    number = re.search(r"Question (\d+)\?", user_text(request))
    assert number
    return number[1], shown(request)[0].startswith("model")


def cached(out: Path) -> set[tuple[str, bool]]:
    """What stands in whole lines of the cache."""
    path = out / "cache.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines[1:]]
    assert len({row["key"] for row in rows}) == len(rows)
    return {(str(row["question_id"]), row["order"] == "model first") for row in rows}


def test_a_run_that_is_killed_five_times_judges_nothing_twice_and_misses_nothing(
    tmp_path: Path, serve: Any
) -> None:
    count = 150
    server, answers, out = serve(content, 0.03, 32), two(tmp_path, count), tmp_path / "out"
    done = set[tuple[str, bool]]()
    under_way = 0
    for kill_at in (35, 80, 130, 180, 235):  # replies that the cache holds
        asked = len(server.seen)
        process = subprocess.Popen(
            command(answers, server, out), env=environment(), stdout=subprocess.DEVNULL
        )
        wait_until(lambda: len(cached(out)) >= kill_at)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.1)
        new = [asked_of(request) for request in server.seen[asked:]]
        # What an earlier run had in its cache was not asked for again.
        assert not done & set(new)
        done = cached(out)
        under_way += len(set(new) - done)
    assert server.most_at_once == 32
    asked = len(server.seen)
    result = subprocess.run(
        command(answers, server, out), env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not done & {asked_of(request) for request in server.seen[asked:]}
    # All that was asked twice was under way when its process was killed.
    everything = Counter(map(asked_of, server.seen))
    assert len(everything) == 2 * count
    assert sum(everything.values()) - len(everything) == under_way <= 5 * 32
    assert len(cached(out)) == 2 * count
    assert [row["preference"] for row in verdicts(out)] == [2.0, 1.0] * (count // 2)
    assert summary(out)["asked"]["wanted"] == summary(out)["asked"]["replies"] == 2 * count


def test_a_torn_last_line_is_asked_for_again_and_a_damaged_one_is_told(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    server, answers, out = serve(content), two(tmp_path, 5), tmp_path / "out"
    assert judge(answers, server, out) == 0
    cache, expected = out / "cache.jsonl", (out / "verdicts.jsonl").read_bytes()
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-25])
    assert judge(answers, server, out) == 0 and len(server.seen) == 11
    assert (out / "verdicts.jsonl").read_bytes() == expected
    lines = whole.split(b"\n")
    lines[3] = lines[3][:40]
    cache.write_bytes(b"\n".join(lines))
    assert judge(answers, server, out) == 2
    assert "cache.jsonl:4: damaged" in capsys.readouterr().err


def by_name(names: tuple[str, str]) -> Callable[[dict[str, Any]], str]:
    """Which of two names the longer answer stands behind."""

    def rule(request: dict[str, Any]) -> str:
        parts = re.split(rf"\b(?:{names[0]}|{names[1]}) answered:", user_text(request))
        return names[parts[2].count("x") > parts[1].count("x")]

    return rule


def test_alpaca_eval_asks_for_ranks_in_one_order(tmp_path: Path, serve: Any) -> None:
    better = by_name(("model_1", "model_2"))

    def rule(request: dict[str, Any]) -> str:
        first = better(request)
        second = {"model_1": "model_2", "model_2": "model_1"}[first]
        return f"[{{'model': '{second}', 'rank': 2}}, {{'model': '{first}', 'rank': 1}}]"

    server, out = serve(rule), tmp_path / "out"
    assert judge(two(tmp_path, 30), server, out, "--rules", "alpaca_eval") == 0
    assert [row["preference"] for row in verdicts(out)] == [2.0, 1.0] * 15
    assert len(server.seen) == 30 and {r["max_tokens"] for r in server.seen} == {100}
    orders = {row["reviews"][0]["order"] for row in verdicts(out)}
    assert orders == {"model first", "baseline first"}


def test_alpaca_eval_2_takes_the_probability_of_a_name(tmp_path: Path, serve: Any) -> None:
    better = by_name(("Model m", "Model M"))

    def rule(request: dict[str, Any]) -> dict[str, Any]:
        name = better(request)[-1]
        other = {"m": "M", "M": "m"}[name]
        top = [(name, -0.017597131), (other, -4.048847), ("The", -9.0)]
        tokens = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
        content = [{**tokens[0], "top_logprobs": tokens}]
        return {"content": name, "logprobs": {"content": content, "refusal": None}}

    server, out = serve(rule), tmp_path / "out"
    assert judge(two(tmp_path, 30), server, out, "--rules", "alpaca_eval_2") == 0
    found = [row["preference"] for row in verdicts(out)]
    # The golden pair of log-probabilities: 1.9825575 where the model is the better one.
    assert found == pytest.approx([1.9825575, 1.0174425] * 15, abs=1e-7)
    sent = {(r["max_tokens"], r["logprobs"], r["top_logprobs"]) for r in server.seen}
    assert sent == {(1, True, 5)}


def test_a_prompt_of_alpaca_eval_is_taken_as_it_is(tmp_path: Path, serve: Any) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(
        "<|im_start|>system\nYou judge.\n<|im_end|>\n<|im_start|>user\n"
        'Of {instruction}, {\n  "m": "{output_1}",\n  "M": "{output_2}"\n}?\n<|im_end|>'
    )
    server, out = serve(lambda request: "m"), tmp_path / "out"
    more = ("--rules", "alpaca_eval_2", "--prompts", str(prompt))
    assert judge(two(tmp_path, 1), server, out, *more) == 0
    (request,) = server.seen
    assert request["messages"][0] == {"role": "system", "content": "You judge."}
    both = {"model 0 " + "x" * 20, "base 0 " + "x" * 10}
    found = re.fullmatch(
        r'Of Question 0\?, \{\n  "m": "(.+)",\n  "M": "(.+)"\n\}\?', user_text(request)
    )
    assert found and set(found.groups()) == both
    # Without log-probabilities there is no verdict.
    assert summary(out)["unreadable"] == 1


def test_what_gets_no_reply_is_told_and_asked_for_again(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    sick = {"Question 1?", "Question 2?"}

    def rule(request: dict[str, Any]) -> Any:
        text = user_text(request)
        if "Question 1?" in sick and "Question 1?" in text:
            return {"status": 503}
        if "Question 2?" in sick and "Question 2?" in text:
            return {"status": 400}
        return content(request)

    server, answers, out = serve(rule), two(tmp_path, 4), tmp_path / "out"
    assert judge(answers, server, out, "--retries", "0") == 1
    told = capsys.readouterr().out
    assert "4 replies are missing; run the same command again" in told
    assert "refused: " in told and "told to fail" in told
    assert [row["preference"] for row in verdicts(out)] == [2.0, None, None, 1.0]
    assert summary(out)["missing"] == 2 and summary(out)["unreadable"] == 0
    sick.clear()
    asked = len(server.seen)
    assert judge(answers, server, out) == 0
    assert len(server.seen) == asked + 4
    assert [row["preference"] for row in verdicts(out)] == [2.0, 1.0] * 2


MT_BENCH = ROOT.parent / "shared" / "data" / "mt_bench"


@pytest.mark.skipif(not MT_BENCH.is_dir(), reason="the shared data sets are not here")
def test_mt_benchs_own_files_are_compared_on_both_turns(tmp_path: Path, serve: Any) -> None:
    server, out = serve(lambda request: "My verdict: [[B]]"), tmp_path / "out"
    answers = [str(MT_BENCH / "model_answer" / f"{n}.jsonl.gz") for n in ("gpt-4", "llama-13b")]
    more = ["--rules", "mt_bench", "--questions", str(MT_BENCH / "question.jsonl.gz")]
    more += ["--references", str(MT_BENCH / "reference_answer" / "gpt-4.jsonl.gz")]
    more += ["--prompts", str(MT_BENCH / "judge_prompts.jsonl.gz")]
    assert judge(answers, server, out, *more) == 0
    made = summary(out)
    assert (made["comparisons"], made["win_rate"], made["conflict_rate"]) == (160, 50.0, 100.0)
    assert len(made["by_category"]) == 8 and len(server.seen) == 320
    prompts = Counter(row["prompt"] for row in verdicts(out))
    assert prompts == {
        "pair-v2": 50,
        "pair-v2-multi-turn": 50,
        "pair-math-v1": 30,
        "pair-math-v1-multi-turn": 30,
    }
    # Which of 32 requests at once comes first is chance.
    shown = [request["messages"] for request in server.seen]
    start = "[User Question]\nCompose an engaging travel blog"
    assert sum(messages[1]["content"].startswith(start) for messages in shown) == 2
    assert all(messages[0]["role"] == "system" for messages in shown)
