"""`rayward judge tasks`, killed half-way, against a server with log-probabilities by a rule."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.task_copies import write_all

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: make install-eval",
)
ROOT = Path(__file__).parents[2]


class Echo(BaseHTTPRequestHandler):
    """Completions of a token, with log-probabilities of the prompt: of each id by itself."""

    server: EchoServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say({"data": [{"id": "tiny", "max_model_len": 1600}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = request["prompt"][0] if isinstance(request["prompt"][0], list) else request["prompt"]
        values = [None, *(-0.1 * (each % 7) - 0.01 for each in ids[1:]), -1.0]
        tops = [None, *({"x": value} for value in values[1:])]
        time.sleep(0.01)
        self.server.seen[tuple(ids)] += 1
        logprobs = {"token_logprobs": values, "top_logprobs": tops}
        self._say({"choices": [{"index": 0, "text": "", "logprobs": logprobs}]})

    def _say(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


class EchoServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.seen = Counter[tuple[int, ...]]()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def model(self) -> str:
        return f"tiny@http://127.0.0.1:{self.server_address[1]}/v1"


@pytest.mark.slow
def test_it_goes_on_from_the_requests_that_have_a_reply(tiny_models: Any, tmp_path: Path) -> None:
    data, out, at_once = write_all(tmp_path / "data", items=60), tmp_path / "out", 4
    server = EchoServer()
    command = [sys.executable, "-m", "rayward.pipelines.cli", "judge", "tasks", server.model]
    command += ["--data", str(data), "--tasks", "arc,hellaswag", "--out", str(out)]
    command += ["--tokenizer", tiny_models.policy, "--concurrency", str(at_once)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first, second = out / "plain" / "arc.json", out / "plain" / "hellaswag.json"
    process = subprocess.Popen(command, env=environment)
    try:
        asked = 0
        while not first.exists() or server.seen.total() < asked + 60:
            asked = asked if first.exists() else server.seen.total()
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = first.stat().st_mtime_ns
    assert not second.exists()
    time.sleep(1)  # what was under way
    before = server.seen.total()
    time.sleep(1)
    assert server.seen.total() == before, "lm-eval's process outlived the command"
    subprocess.run(command, env=environment, check=True)
    assert first.stat().st_mtime_ns == done
    items = [json.loads(line) for line in second.with_suffix(".jsonl").read_text().splitlines()]
    assert len(items) == 60 and not list((out / "cache").iterdir())
    probe = (5, 6, 7)
    assert server.seen.pop(probe) == 2
    # What was under way may be on its way to the disk, too.
    twice = sum(count - 1 for count in server.seen.values())
    assert twice <= 4 * at_once, f"{twice} requests were made twice"
    server.shutdown()
    server.server_close()
