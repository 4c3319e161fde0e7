"""`rayward data simulate` and `rank` against an endpoint that answers by rules, and fails when it
is told to.

It is a real HTTP server, so client, pacing, repeats and account are what they are in use; a real
vLLM server is asked in test_feedback_vllm.py.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.registry import read
from rayward.data.record_json import to_json
from rayward.data.records import Conversation, Ranking, Turn
from rayward.pipelines.cli import main
from rayward.pipelines.data_tools.ledger import Ledger

ROOT = Path(__file__).parents[2]
Answer = str | tuple[int, dict[str, str]]


class Rules(ThreadingHTTPServer):
    """Answers chat completions with what `answer(request)` says: a text, or a status and
    headers.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.times = answer, list[dict[str, Any]](), list[float]()
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0

    @property
    def model(self) -> str:
        return f"rules@http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Rules

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request["key"] = self.headers["Authorization"]
        with self.server.lock:
            self.server.seen.append(request)
            self.server.times.append(time.monotonic())
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        answer = self.server.answer(request)
        with self.server.lock:
            self.server.at_once -= 1
        status, headers = (200, {}) if isinstance(answer, str) else answer
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": answer},
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "rules",
            "choices": [choice],
        }
        text = json.dumps(
            body | {"usage": usage} if status == 200 else {"error": {"message": "told to fail"}}
        ).encode()
        try:
            self.send_response(status)
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(text)),
            } | headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)
        except BrokenPipeError:
            pass  # the client was told to wait no longer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Answer]], Rules]]:
    started: list[Rules] = []

    def start(answer: Callable[[dict[str, Any]], Answer]) -> Rules:
        started.append(Rules(answer))
        threading.Thread(target=started[-1].serve_forever, args=(0.02,), daemon=True).start()
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def user_text(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def labelled(request: dict[str, Any]) -> dict[str, str]:
    return dict(re.findall(r"<<< ANSWER (\w) >>>\n(.*?)\n<<< END", user_text(request), re.DOTALL))


def longest_first(request: dict[str, Any]) -> str:
    shown = labelled(request)
    return f"I compared them.\n[{sorted(shown, key=lambda label: -len(shown[label]))}]"


def rankings(count: int, k: int = 3) -> list[dict[str, Any]]:
    made = []
    for number in range(count):
        answers = tuple("x" * (1 + (number + place) % k) + f" {number}" for place in range(k))
        made.append(
            to_json(Ranking((Turn("user", f"Question {number}?"),), answers, "mine", f"r{number}"))
        )
    return made


# ---- rank
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 7])
def test_a_ranking_is_the_judges_whatever_was_shown_first(
    k: int, tmp_path: Path, serve: Any
) -> None:
    source, out = write(tmp_path / "in.jsonl", rankings(12, k)), tmp_path / "out.jsonl"
    server, report = serve(longest_first), tmp_path / "made" / "report.json"
    flags = ["--repeat", "1", "--judge-price", "1", "2", "--report", str(report)]
    assert (
        main(["data", "rank", str(source), "--out", str(out), "--judge", server.model, *flags]) == 0
    )
    found = list(read(out, "nectar"))
    assert [record.id for record in found] == [f"r{number}" for number in range(12)]
    for record in found:
        assert (
            isinstance(record, Ranking)
            and record.source == "mine"
            and record.ranks == tuple(range(1, k + 1))
        )
        assert list(record.answers) == sorted(record.answers, key=len, reverse=True)
    account = json.loads(report.read_text())
    assert (account["read"], account["written"], account["rejected"]) == (12, 12, {})
    assert account["agreement"] == {
        "n": 12,
        "same_order": 1.0,
        "same_best": 1.0,
        "kendall_tau": 1.0,
    }
    usage = {
        "requests": 24,
        "retries": 0,
        "prompt_tokens": 2400,
        "reply_tokens": 240,
        "cost": 0.00288,
    }
    assert account["models"]["judge"] == usage
    assert all(request["temperature"] == 0 for request in server.seen)
    shown = Counter(tuple(labelled(request).values()) for request in server.seen)
    assert max(shown.values()) == 1, "a second ranking saw the same order"
    made = {"in.jsonl", "made", "out.jsonl", "out.jsonl.rejected.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == made


def test_a_judge_that_always_likes_the_first_place_agrees_no_more_than_chance(
    tmp_path: Path, serve: Any
) -> None:
    source, report = write(tmp_path / "in.jsonl", rankings(300, 2)), tmp_path / "report.json"
    server = serve(lambda request: "[['A', 'B']]")
    flags = ["--repeat", "0.5", "--report", str(report)]
    assert (
        main(
            [
                "data",
                "rank",
                str(source),
                "--out",
                str(tmp_path / "o.jsonl"),
                "--judge",
                server.model,
                *flags,
            ]
        )
        == 0
    )
    agreement = json.loads(report.read_text())["agreement"]
    assert 115 < agreement["n"] < 185 and len(server.seen) == 300 + agreement["n"]
    # Of two, the other order is the reverse.
    assert agreement["same_best"] == 0 and agreement["kendall_tau"] == -1


def test_what_cannot_be_ranked_is_set_aside_with_its_reason(tmp_path: Path, serve: Any) -> None:
    framed = to_json(Ranking((Turn("user", "a\n\nHuman: b"),), ("x", "y"), "", "framed"))
    talk = to_json(Conversation((Turn("user", "a"), Turn("assistant", "b")), "", "talk"))
    long = to_json(Ranking((Turn("user", "a" * 40000),), ("x", "y"), "", "long"))
    many = to_json(Ranking((Turn("user", "a"),), tuple(str(n) for n in range(27)), "", "many"))
    bad = {
        "kind": "ranking",
        "turns": [{"role": "user", "content": "a"}],
        "answers": ["only one"],
        "id": "one",
    }
    source = write(tmp_path / "in.jsonl", [*rankings(5), framed, talk, long, many, bad])
    replies = {0: "I'm sorry, I cannot do that.", 1: "[['A', 'A', 'B']]", 2: "All the same to me."}

    def answer(request: dict[str, Any]) -> Answer:
        number = int(re.search(r"Question (\d)", user_text(request))[1])  # type: ignore[index]
        return (400, {}) if number == 3 else replies.get(number) or longest_first(request)

    out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    flags = ["--judge", serve(answer).model, "--report", str(report), "--concurrency", "3"]
    assert main(["data", "rank", str(source), "--from", "rayward", "--out", str(out), *flags]) == 0
    listed = rows(out.with_name("out.jsonl.rejected.jsonl"))
    assert [(row["id"], row["reason"], row["line"]) for row in listed] == [
        ("r0", "refusal", 1),
        ("r1", "not a permutation of the labels", 2),
        ("r2", "no ranking in the reply", 3),
        ("r3", "refused by the endpoint", 4),
        ("framed", "text contains the frame", 6),
        ("talk", "no answers to rank", 7),
        ("long", "prompt too long", 8),
        ("many", "too many answers", 9),
        ("", "too few answers", 10),
    ]
    assert [row["found"] for row in listed[:3]] == list(
        replies.values()
    ) and "told to fail" in listed[3]["found"]
    account = json.loads(report.read_text())
    assert (account["read"], account["written"], sum(account["rejected"].values())) == (10, 1, 9)


# ---- the client
# --------------------------------------------------------------------------------------------


def test_failures_are_repeated_counted_and_end_well(tmp_path: Path, serve: Any) -> None:
    tries = Counter[str]()
    failures = [(429, {"Retry-After": "0.05"}), (500, {}), (503, {})]

    def answer(request: dict[str, Any]) -> Answer:
        tries[user_text(request)] += 1
        number = tries[user_text(request)] - 1
        return failures[number] if number < len(failures) else longest_first(request)

    source, report = write(tmp_path / "in.jsonl", rankings(3)), tmp_path / "report.json"
    flags = ["--judge", serve(answer).model, "--report", str(report)]
    assert main(["data", "rank", str(source), "--out", str(tmp_path / "out.jsonl"), *flags]) == 0
    counts = json.loads(report.read_text())["models"]["judge"]
    assert (counts["requests"], counts["retries"], counts["reply_tokens"]) == (12, 9, 30)


def test_what_gets_no_answer_is_asked_again_by_the_same_command(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    sick = {"r": True}

    def answer(request: dict[str, Any]) -> Answer:
        if "Question 1?" in user_text(request) and sick["r"]:
            time.sleep(1.5)
        return longest_first(request)

    server = serve(answer)
    source, out = write(tmp_path / "in.jsonl", rankings(4)), tmp_path / "out.jsonl"
    command = [
        "data",
        "rank",
        str(source),
        "--out",
        str(out),
        "--judge",
        server.model,
        "--retries",
        "1",
    ]
    assert main([*command, "--timeout", "0.5"]) == 1
    assert "1 got no answer" in capsys.readouterr().out
    assert [row["reason"] for row in rows(out.with_name("out.jsonl.rejected.jsonl"))] == [
        "no answer: APITimeoutError"
    ]
    assert [record.id for record in read(out)] == ["r0", "r2", "r3"]
    sick.clear()
    sick["r"], asked = False, len(server.seen)
    assert main(command) == 0 and len(server.seen) == asked + 1
    assert [record.id for record in read(out)] == ["r0", "r1", "r2", "r3"]
    assert main(command) == 2 and "is there already" in capsys.readouterr().err


def test_an_endpoint_that_only_fails_ends_the_run_which_keeps_its_work(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    well = {"n": 10}

    def answer(request: dict[str, Any]) -> Answer:
        well["n"] -= 1
        return longest_first(request) if well["n"] >= 0 else (500, {})

    source, out = write(tmp_path / "in.jsonl", rankings(60)), tmp_path / "out.jsonl"
    command = [
        "data",
        "rank",
        str(source),
        "--out",
        str(out),
        "--judge",
        serve(answer).model,
        "--concurrency",
        "2",
    ]
    assert main([*command, "--retries", "0"]) == 1
    assert "20 requests in a row failed" in capsys.readouterr().err and not out.exists()
    assert len(rows(tmp_path / "out.partial.jsonl")) == 1 + 10
    well["n"] = 1000
    assert main(command) == 0 and len(rows(out)) == 60
    # One request that the failed run had out beside its last may still be answered now.
    assert well["n"] in (949, 950)


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(
    interrupt: signal.Signals, tmp_path: Path, serve: Any
) -> None:
    def slow(request: dict[str, Any]) -> Answer:
        time.sleep(0.2)
        return longest_first(request)

    source, out = write(tmp_path / "in.jsonl", rankings(40)), tmp_path / "o.jsonl"
    partial = tmp_path / "o.partial.jsonl"
    flags = [
        "data",
        "rank",
        str(source),
        "--out",
        str(out),
        "--judge",
        serve(slow).model,
        "--concurrency",
        "2",
    ]
    command = [sys.executable, "-m", "rayward.pipelines.cli", *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not partial.exists() or len(partial.read_bytes().splitlines()) < 4:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(interrupt)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and told.strip().endswith(
        "run the same command again to go on"
    )
    assert "Traceback" not in told and not out.exists() and len(rows(partial)) >= 4
    assert main(flags) == 0 and len(rows(out)) == 40


@pytest.mark.parametrize("status", [401, 404])
def test_an_endpoint_that_takes_no_request_ends_the_run_at_once(
    status: int, tmp_path: Path, serve: Any, capsys: Any
) -> None:
    server, source = serve(lambda request: (status, {})), write(tmp_path / "in.jsonl", rankings(9))
    flags = ["--judge", server.model, "--concurrency", "1"]
    assert main(["data", "rank", str(source), "--out", str(tmp_path / "out.jsonl"), *flags]) == 2
    assert "refuses the judge rules" in capsys.readouterr().err and len(server.seen) == 1


def test_requests_are_bounded_in_number_and_in_pace(
    tmp_path: Path, serve: Any, monkeypatch: Any
) -> None:
    def slow(request: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return longest_first(request)

    server, source = serve(slow), write(tmp_path / "in.jsonl", rankings(12))
    monkeypatch.setenv("MY_KEY", "secret")
    flags = [
        "--judge",
        server.model,
        "--judge-key",
        "MY_KEY",
        "--judge-request",
        '{"seed": null, "max_tokens": 9}',
    ]
    assert (
        main(
            [
                "data",
                "rank",
                str(source),
                "--out",
                str(tmp_path / "1.jsonl"),
                "--concurrency",
                "3",
                *flags,
            ]
        )
        == 0
    )
    assert server.most_at_once == 3 and all(
        request["key"] == "Bearer secret" for request in server.seen
    )
    assert all("seed" not in request and request["max_tokens"] == 9 for request in server.seen)
    server.times.clear()
    paced = ["--requests-per-minute", "1200", *flags]
    assert main(["data", "rank", str(source), "--out", str(tmp_path / "2.jsonl"), *paced]) == 0
    assert server.times[-1] - server.times[0] > 11 * 0.05 - 0.04


# ---- simulate
# ----------------------------------------------------------------------------------------------

SEEDS = [
    {"module": "world", "topic": "tides", "id": "tides"},
    {"module": "writing", "writing_type": "poem", "instruction": "about rain", "id": "rain"},
    {"module": "materials", "material": "Snow fell.", "id": "snow"},
    {"module": "world", "entity": "the Moon", "id": "moon"},
]


def two_sides(user: Callable[[int, str], str]) -> tuple[Callable[[dict[str, Any]], Answer], ...]:
    """A user whose n-th message after the opening is `user(n, request)`, and an assistant that
    counts.
    """

    def as_user(request: dict[str, Any]) -> Answer:
        said = user_text(request).count("USER: ")
        return (
            user(said, user_text(request))
            if said
            else f"As a user, I would ask: About {user_text(request)}"
        )

    def as_assistant(request: dict[str, Any]) -> Answer:
        roles = [message["role"] for message in request["messages"]]
        assert (
            roles == ["system", *(["user", "assistant"] * len(roles))[: len(roles) - 1]]
            and roles[-1] == "user"
        )
        return f"Answer {roles.count('user')}"

    return as_user, as_assistant


def simulate(folder: Path, lines: list[Any], user: Rules, assistant: Rules, *flags: str) -> int:
    seeds = write(folder / "seeds.jsonl", lines)
    sides = [
        "--user",
        user.model,
        "--assistant",
        assistant.model,
        "--report",
        str(folder / "report.json"),
    ]
    return main(
        [
            "data",
            "simulate",
            "--seeds",
            str(seeds),
            "--out",
            str(folder / "out.jsonl"),
            *sides,
            *flags,
        ]
    )


def test_conversations_alternate_and_have_the_rounds_of_their_module(
    tmp_path: Path, serve: Any
) -> None:
    user, assistant = map(
        serve, two_sides(lambda number, request: f"User: Why {number}?\nAssistant: So.")
    )
    lines = [seed | {"id": f"{seed['id']}{number}"} for number in range(10) for seed in SEEDS]
    assert simulate(tmp_path, [*lines, {"module": "world"}], user, assistant, "--seed", "3") == 0
    found = list(read(tmp_path / "out.jsonl", "rayward", strict=True))
    origins = {row["id"]: row for row in rows(tmp_path / "out.jsonl.provenance.jsonl")}
    rejected = rows(tmp_path / "out.jsonl.rejected.jsonl")
    order = {row["id"]: place for place, row in enumerate(lines)}
    assert sorted(found, key=lambda record: order[record.id]) == found
    assert {row["reason"] for row in rejected} == {"duplicate opening", "nothing to ask about"}
    assert rejected[-1]["line"] == 41 and len(found) + len(rejected) == 41 and len(found) >= 8
    for record in found:
        assert isinstance(record, Conversation) and record.quality == "rules"
        module, origin = record.source.removeprefix("simulated/"), origins[record.id]
        assert module == origin["module"] and (origin["user"], origin["assistant"]) == (
            "rules",
            "rules",
        )
        assert (
            origin["sampling_seed"] == 3
            and origin["ended"] == "rounds"
            and origin["cut_answers"] == 0
        )
        count = len(record.turns) // 2
        assert count == origin["rounds_drawn"] and (
            3 <= count <= 7 if module == "world" else 2 <= count <= 4
        )
        assert [turn.content for turn in record.turns[2::2]] == [
            f"Why {number}?" for number in range(1, count)
        ]
        assert [turn.content for turn in record.turns[1::2]] == [
            f"Answer {number + 1}" for number in range(count)
        ]
        first = record.turns[0].content
        assert "As a user" not in first and ("Snow fell." in first) == (module == "materials")
    assert json.loads((tmp_path / "report.json").read_text())["read"] == 41
    assert {request["temperature"] for request in user.seen} == {1.0}
    assert {request["temperature"] for request in assistant.seen} == {0.7}


def test_thanks_and_silence_end_a_conversation_with_the_assistant(
    tmp_path: Path, serve: Any
) -> None:
    def user_says(number: int, request: str) -> str:
        if number < 2:
            return "And then?"
        return (
            "Thank you, that is all!"
            if "tides" in request
            else "(as the user) "
            if "Moon" in request
            else "Go on."
        )

    user, assistant = map(serve, two_sides(user_says))
    assert simulate(tmp_path, SEEDS, user, assistant) == 0
    ended = {row["id"]: row["ended"] for row in rows(tmp_path / "out.jsonl.provenance.jsonl")}
    assert ended == {"tides": "thanks", "rain": "rounds", "snow": "rounds", "moon": "silence"}
    turns = {
        record.id: [turn.content for turn in record.turns]
        for record in read(tmp_path / "out.jsonl")
    }
    for name in ("tides", "moon"):
        assert turns[name][1:] == ["Answer 1", "And then?", "Answer 2"]


def test_other_settings_are_refused_and_a_torn_line_is_not(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    user, assistant = map(serve, two_sides(lambda number, request: "Go on."))
    assert simulate(tmp_path, SEEDS, user, assistant) == 0
    whole, partial = (tmp_path / "out.jsonl").read_bytes(), tmp_path / "out.partial.jsonl"
    (tmp_path / "out.jsonl").unlink()
    healthy, calls = user.answer, Counter[str]()

    def until(request: dict[str, Any]) -> Answer:
        calls["n"] += 1
        return (401, {}) if calls["n"] > 9 else healthy(request)

    user.answer = until
    assert simulate(tmp_path, SEEDS, user, assistant, "--concurrency", "1") == 2
    done = partial.read_bytes()
    assert 1 < len(done.splitlines()) < 5
    capsys.readouterr()
    assert simulate(tmp_path, SEEDS, user, assistant, "--seed", "9") == 2
    assert "seed was 0, now 9" in capsys.readouterr().err and partial.read_bytes() == done
    user.answer = healthy
    partial.write_bytes(done + b'{"key": "rain:0123", "turns": ["half a l')
    assert simulate(tmp_path, SEEDS, user, assistant) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == whole and not partial.exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["done_before"] == len(done.splitlines()) - 1


def test_a_ledger_has_one_writer_and_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "a.partial.jsonl"
    first = Ledger(path, {"seed": 1})
    first.add("x", {"text": "ü\n\ud83d"})
    first.add("y", {"text": "b"})
    assert first.get("x")["text"] == "ü\n\ud83d" and first.get("y")["text"] == "b"
    with pytest.raises(ValueError, match="another run is writing it"):
        Ledger(path, {"seed": 1})
    first.file.close()
    second = Ledger(path, {"seed": 1})
    second.add("z", {"text": "c"})
    assert [second.get(key)["text"] for key in "zxy"] == ["c", "ü\n\ud83d", "b"]
    second.file.close()
    path.write_bytes(path.read_bytes().replace(b'{"key": "y"', b'{"key"'))
    with pytest.raises(ValueError, match="a.partial.jsonl:3: damaged"):
        Ledger(path, {"seed": 1})


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--judge", "nothing"], "neither NAME@http"),
        (["--repeat", "2"], "from 0 to 1"),
        (["--concurrency", "0"], "at least 1"),
        (["--out", "a.txt"], "must end in"),
        (["--prompts", "."], "files are []"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(
    flags: list[str], told: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "in.jsonl", rankings(1))
    command = [
        "data",
        "rank",
        str(source),
        "--out",
        "o.jsonl",
        "--judge",
        "m@http://127.0.0.1:9/v1",
        *flags,
    ]
    assert main(command) == 2 and told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
