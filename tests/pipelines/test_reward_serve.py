"""`rayward reward-serve`: a real Serve with a small model, its scores, its refusals, its batches
and its end.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rayward.actors.models.load import load_scalar, save_model
from rayward.actors.scoring.score_service import Message, turn_of
from rayward.data.formats.rows.message_parts import messages_of
from rayward.data.records import ToolCall, Turn
from rayward.data.templates.template import encode, find
from rayward.data.toy import toyworld
from rayward.pipelines.model_tools import reward_serve

ROOT = Path(__file__).parents[2]
CONTEXT, MOST, OFFSET = 400, 40, 0.25


@pytest.fixture(scope="module")
def folder(tiny_models, tmp_path_factory) -> str:
    """The tiny reward model with an offset to take from its scores."""
    classifier = load_scalar(tiny_models.reward, "float32").classifier
    classifier.config.score_offset = OFFSET
    path = tmp_path_factory.mktemp("served") / "scorer"
    save_model(classifier, classifier.state_dict(), tiny_models.tokenizer, path)
    return str(path)


def options(folder: str, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    reward_serve.add(parser.add_subparsers())
    return parser.parse_args(
        ["reward-serve", folder, "--context", str(CONTEXT), "--threads", "1", *more]
    )


@pytest.fixture(scope="module")
def url(local_ray, folder: str) -> Iterator[str]:
    from ray import serve

    yield reward_serve.start(
        options(folder, "--max-conversations", str(MOST), "--batch-wait", "0.2")
    )
    serve.shutdown()


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chats(count: int) -> list[list[dict[str, str]]]:
    return [
        [{"role": turn.role, "content": turn.content} for turn in row.turns]
        for row in toyworld.demonstrations(count, seed=5)
    ]


def ask(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/score", json=body, timeout=120, trust_env=False)


@torch.no_grad()
def plain(folder: str, tokenizer: Any, conversations: list[list[dict[str, str]]]) -> list[float]:
    """transformers' own forward, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [
        encode(
            find("openchat_3.5"), [Turn(m["role"], m["content"]) for m in messages], tokenizer
        ).ids  # type: ignore[arg-type]
        for messages in conversations
    ]
    return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) - OFFSET for row in rows]


def test_scores_are_those_of_transformers_less_the_offset(
    url: str, folder: str, tiny_models
) -> None:
    conversations = chats(12)
    expected = plain(folder, tiny_models.tokenizer, conversations)
    assert max(expected) - min(expected) > 0.1
    told = ask(url, conversations=conversations)
    assert told.status_code == 200, told.text
    assert told.json()["scores"] == pytest.approx(expected, abs=1e-5)
    assert told.json()["model"] == "scorer"
    assert len(set(told.json()["tokens"])) > 1 and all(
        8 < n <= CONTEXT for n in told.json()["tokens"]
    )
    alone = ask(url, messages=conversations[3]).json()
    assert alone["scores"] == pytest.approx(expected[3:4], abs=1e-5)
    assert alone["tokens"] == told.json()["tokens"][3:4]


def test_a_cut_answer_is_read_without_the_end_token(url: str, folder: str, tiny_models) -> None:
    conversations = chats(3)
    whole = ask(url, conversations=conversations).json()
    told = ask(url, conversations=conversations, finished=[True, False, False]).json()
    assert [a - b for a, b in zip(whole["tokens"], told["tokens"], strict=True)] == [0, 1, 1]
    assert (
        told["scores"][0] == pytest.approx(whole["scores"][0], abs=1e-5)
        and told["scores"][1] != whole["scores"][1]
    )
    alone = ask(url, messages=conversations[2], finished=[False]).json()
    assert alone["scores"] == pytest.approx(told["scores"][2:], abs=1e-5)


GOOD = chat("hi", "yes")
SCHEMA = {"type": "function", "function": {"name": "look"}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]}


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, {}, "either messages or conversations"),
        (400, {"messages": GOOD, "conversations": [GOOD]}, "either messages or conversations"),
        (400, {"messages": []}, "messages: found 0 turns"),
        (400, {"conversations": []}, "give 1 to"),
        (
            400,
            {"conversations": [GOOD, [{"role": "bob", "content": "hi"}]]},
            "conversations[1][0].role: found 'bob'",
        ),
        (400, {"messages": GOOD[:1]}, "messages[0].role: found user, expected assistant"),
        (400, {"messages": chat("hi", " ")}, "messages[1].content"),
        (
            400,
            {"messages": GOOD, "finished": [True, False]},
            "finished has 2 entries for 1 conversations",
        ),
        (400, {"messages": GOOD, "tools": []}, "tools has 0 entries for 1 conversations"),
        # The template of this model has no place for them: refused by name, not passed over.
        (400, {"messages": GOOD, "tools": [[SCHEMA]]}, "tools: found look"),
        (400, {"messages": GOOD, "tools": [[{"name": " "}]]}, "tools[0].function.name"),
        (400, {"messages": [GOOD[0], CALL]}, "turns[1].tool_calls: found look"),
        (
            413,
            {"conversations": [GOOD, chat("hi " * CONTEXT, "yes")]},
            f"tokens, more than {CONTEXT}",
        ),
        (
            413,
            {"conversations": [GOOD] * (MOST + 1)},
            f"{MOST + 1} conversations; give 1 to {MOST}",
        ),
        (422, {"messages": "hello"}, "valid list"),
        (422, {"messages": [{"role": "user"}]}, "Field required"),
    ],
)
def test_what_a_client_did_wrong_is_said(
    url: str, status: int, body: dict[str, Any], told: str
) -> None:
    answer = ask(url, **body)
    assert answer.status_code == status
    assert told in json.dumps(answer.json()["detail"])


def test_messages_are_read_with_calls_results_and_reasoning() -> None:
    turns = (
        Turn("assistant", "", None, "I look.", (ToolCall("look", '{"at": null}', "c1"),)),
        Turn("tool", "dry", tool_call_id="c1", name="look"),
    )
    read = [turn_of(Message.model_validate(message), "messages") for message in messages_of(turns)]
    assert tuple(read) == turns


def test_malformed_json(url: str) -> None:
    assert httpx.post(f"{url}/score", content="{", timeout=60, trust_env=False).status_code == 422


def test_requests_of_different_clients_share_batches(url: str, folder: str, tiny_models) -> None:
    """And everybody gets the own score back."""
    conversations = chats(24)

    def counted() -> tuple[int, int]:
        health = httpx.get(f"{url}/health", timeout=60, trust_env=False).json()
        return health["scored"], health["batches"]

    before = counted()
    with ThreadPoolExecutor(len(conversations)) as pool:
        answers = list(pool.map(lambda messages: ask(url, messages=messages).json(), conversations))
    after = counted()
    assert after[0] - before[0] == len(conversations)
    assert after[1] - before[1] <= len(conversations) / 2
    scores = [score for answer in answers for score in answer["scores"]]
    assert scores == pytest.approx(plain(folder, tiny_models.tokenizer, conversations), abs=1e-5)


def test_a_request_that_waits_longer_than_its_deadline_is_a_504(url: str, folder: str) -> None:
    """One row waits two seconds for others to share its batch, and none come; a full batch does not
    wait.
    """
    from ray import serve

    from rayward.actors.scoring.score_service import Limits, application

    limits = Limits(context_tokens=CONTEXT, deadline_s=0.5, batch_wait_s=2.0, max_batch=8)
    serve.run(application(folder, limits, 1), name="hurried", route_prefix="/hurried")
    late = ask(f"{url}/hurried", messages=GOOD)
    assert (late.status_code, late.json()["detail"]) == (
        504,
        "not scored within 0.5 s: the server is busy",
    )
    serve.delete("hurried")


def test_a_folder_that_is_no_reward_model_is_told_before_anything_starts(tiny_models) -> None:
    with pytest.raises(ValueError, match="no score head in this folder"):
        reward_serve.prepare(options(tiny_models.policy))


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupt_ends_the_command_and_all_it_started(
    folder: str, interrupt: signal.Signals
) -> None:
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "reward-serve",
        folder,
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    started = psutil.Process(process.pid).children(recursive=True)
    url = said.split()[-1].removesuffix("/score")
    assert ask(url, messages=GOOD).status_code == 200
    process.send_signal(interrupt)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and rest.endswith("stopping\n")
    assert started and psutil.wait_procs(started, timeout=30)[1] == []
