"""The figures of `judge tasks`, by hand: means, standard errors, the table of four columns; and
what is refused before anything starts.
"""

from __future__ import annotations

import importlib.util
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main
from rayward.pipelines.judging.harness.figures import Value, figures, leaderboard
from rayward.pipelines.judging.harness.server import shown_name
from tests.pipelines.task_copies import write_all

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: make install-eval",
)


def made(**of: tuple[dict[str, Any], int]) -> dict[str, Any]:
    return {
        "results": {name: metrics for name, (metrics, _) in of.items()},
        "items": {name: items for name, (_, items) in of.items()},
    }


def test_mmlu_has_the_mean_of_subjects_and_that_of_all_questions() -> None:
    small = ({"acc,none": 0.5, "acc_stderr,none": 0.05}, 100)
    large = ({"acc,none": 0.2, "acc_stderr,none": 0.02}, 400)
    values = figures("mmlu", made(mmlu_anatomy=small, mmlu_law=large))
    subjects, pooled = values.values()
    assert list(values) == ["acc,none, mean of subjects", "acc,none, all questions"]
    assert (subjects.mean, pooled.mean) == (pytest.approx(0.35), pytest.approx(0.26))
    assert subjects.error == pytest.approx(math.hypot(0.05, 0.02) / 2)
    assert pooled.error == pytest.approx(math.hypot(100 * 0.05, 400 * 0.02) / 500)
    assert subjects.items == pooled.items == 500


def test_the_columns_are_those_of_the_leaderboard_and_their_mean() -> None:
    one = made(
        arc_challenge=({"acc,none": 0.4, "acc_norm,none": 0.5, "acc_norm_stderr,none": 0.03}, 9)
    )
    arc = figures("arc", one)
    assert list(arc) == ["acc_norm,none", "acc,none"] and arc["acc,none"].error is None
    measured = {
        "hellaswag": {"acc_norm,none": Value(0.9, 0.04, 9)},
        "arc": arc,
        "mmlu": {"mean": Value(0.3, 0.0, 9), "other": Value(0.9, 0.0, 9)},
        "gsm8k": {"exact_match,strict-match": Value(0.0, 0.0, 9)},
    }
    assert leaderboard(measured)[2:] == [None, measured["hellaswag"]["acc_norm,none"], None]
    measured["truthfulqa"] = {"acc,none": Value(0.7, 0.0, 9)}
    *columns, mean = leaderboard(measured)
    assert [value.mean for value in columns if value] == [0.3, 0.5, 0.7, 0.9]
    assert mean is not None and mean.mean == pytest.approx(0.6) and mean.error is not None
    assert mean.error == pytest.approx(0.05 / 4)
    assert str(Value(0.6, 0.0125, 9)) == "60.00 ± 2.45"


def test_an_error_that_is_not_there_or_not_a_number_is_none() -> None:
    gsm8k = {
        "exact_match,strict-match": 1.0,
        "exact_match_stderr,strict-match": float("nan"),
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,flexible-extract": 0.5,
    }
    strict, flexible = figures("gsm8k", made(gsm8k=(gsm8k, 1))).values()
    assert (strict.error, str(strict)) == (None, "100.00")
    assert flexible.error == 0.5


def refused(capsys: Any, *arguments: object) -> str:
    status = main(["judge", "tasks", *map(str, arguments)])
    said = capsys.readouterr()
    assert status in (1, 2)
    return str(said.err)


@needs_lm_eval
def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path, tiny_models: Any, capsys: Any
) -> None:
    model, out = tiny_models.policy, ["--out", tmp_path / "out"]
    assert "unknown task 'hellaswg', did you mean hellaswag" in refused(
        capsys, model, "--tasks", "arc,hellaswg", *out
    )
    data = write_all(tmp_path / "data", items=2)
    (data / "gsm8k" / "train.jsonl").rename(data / "gsm8k" / "training.jsonl")
    told = refused(capsys, model, "--data", data, *out)
    assert "mmlu: 55 of 57 subjects (abstract_algebra, business_ethics, " in told
    assert "gsm8k: expected openai/gsm8k/main/ or gsm8k/main/ or gsm8k/ with train" in told
    assert "arc" not in told.replace("--data", "") and "--subjects takes some of them" in told
    told = refused(capsys, model, "--data", data, "--tasks", "mmlu", "--subjects", "anatmy", *out)
    assert "MMLU has no 'anatmy', did you mean anatomy" in told
    few = data / "hellaswag" / "hellaswag_train.jsonl"
    few.write_text("".join(few.read_text().splitlines(keepends=True)[:9]))
    told = refused(capsys, model, "--data", data, "--tasks", "hellaswag", *out)
    assert f"{few}: 9 rows, and hellaswag shows 10 examples of it" in told
    broken = data / "mmlu" / "anatomy" / "test.jsonl"
    broken.write_text(broken.read_text() + '{"question": "?", "choices": ["a"], "answer": 0}\n')
    told = refused(capsys, model, "--data", data, "--tasks", "mmlu", "--subjects", "anatomy", *out)
    assert f"{broken}:3: choices: found list of 1, expected a list of 4 texts or more" in told
    arc = ["--data", data, "--tasks", "arc"]
    told = refused(capsys, "tiny@http://127.0.0.1:9/v1", *arc, *out)
    assert "--tokenizer says whose" in told
    told = refused(capsys, "tiny@http://127.0.0.1:9/v1", *arc, *out, "--tokenizer", model)
    assert "http://127.0.0.1:9/v1 cannot be reached" in told
    told = refused(capsys, model, *arc, *out, "--chat-template", "yes", "--template", "vicuna_v1.1")
    assert "vicuna_v1.1 needs the token '</s>'" in told
    assert "--limit is 0" in refused(capsys, model, *arc, *out, "--limit", 0)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_without_lm_eval_it_is_said_how_to_get_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    told = refused(capsys, "a-model", "--out", tmp_path)
    assert "judge tasks measures with lm-eval, which is not installed: make install-eval" in told


def test_a_stage_s_model_is_named_as_the_board_names_it(tmp_path: Path) -> None:
    stages = [tmp_path / "runs" / "mine" / inner / "model" for inner in ("sft", "rl/ppo")]
    for folder in stages:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert shown_name(str(stages[0]), "model") == "model"
    (tmp_path / "runs" / "mine" / "config.yaml").touch()
    assert [shown_name(str(folder), "model") for folder in stages] == ["mine: sft", "mine: ppo"]
    assert shown_name("gpt@http://127.0.0.1:9/v1", "gpt") == "gpt"


class WithoutEcho(BaseHTTPRequestHandler):
    """Completions as many endpoints give them: log-probabilities of what is new alone."""

    def do_GET(self) -> None:
        self._say({"data": [{"id": "tiny", "max_model_len": 900}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        logprobs = {"token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}], "tokens": ["a"]}
        self._say({"choices": [{"index": 0, "text": "a", "logprobs": logprobs}]})

    def _say(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def without_echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), WithoutEcho)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@needs_lm_eval
def test_an_endpoint_is_looked_at_before_it_is_asked(
    tmp_path: Path, tiny_models: Any, capsys: Any, without_echo: str
) -> None:
    data = write_all(tmp_path / "data", items=2)
    given = ["--data", data, "--out", tmp_path / "out", "--tokenizer", tiny_models.policy]
    told = refused(capsys, f"tiny@{without_echo}", "--tasks", "arc", *given)
    assert "gives no log-probabilities of a prompt (token ids, with echo and logprobs)" in told
    assert "Status 200: " in told and "token_logprobs" in told
    told = refused(capsys, f"other@{without_echo}", "--tasks", "arc", *given)
    assert f"{without_echo} has no model other; it has tiny" in told
    told = refused(capsys, f"tiny@{without_echo}", "--tasks", "ifeval", *given)
    assert "ifeval: its answers take up to 1280 tokens, and a context of 900 leaves none" in told
