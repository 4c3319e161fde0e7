"""A real HTTP server with an OpenAI-compatible API that judges, or answers, by a rule."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[dict[str, Any]], str | dict[str, Any]]


class JudgeServer(ThreadingHTTPServer):
    """Replies with what `rule(request)` says: a text, or fields over those of the answer, or under
    `raw` the bytes of a whole one.

    `seen`: the requests; `most_at_once`: how many were under way together.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rule: Rule, wait_s: float = 0.0, together: int = 0) -> None:
        """`together`: nobody gets a reply before so many requests were under way at once."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule, self.wait_s, self.together = rule, wait_s, together
        self.are_together = threading.Event()
        self.lock, self.seen = threading.Lock(), list[dict[str, Any]]()
        self.at_once = self.most_at_once = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def model(self) -> str:
        return f"rules@http://127.0.0.1:{self.server_address[1]}/v1"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(request)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            if self.server.at_once >= self.server.together:
                self.server.are_together.set()
        self.server.are_together.wait(60)
        time.sleep(self.server.wait_s)
        said = self.server.rule(request)
        with self.server.lock:
            self.server.at_once -= 1
        fields = {"content": said} if isinstance(said, str) else dict(said)
        status = fields.pop("status", 200)
        usage = fields.pop(
            "usage", {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        )
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": fields.pop("logprobs", None),
            "message": {"role": "assistant", **fields},
        }
        body: dict[str, Any] = {"id": "1", "created": 0, "model": request["model"]}
        body |= {"object": "chat.completion", "choices": [choice], "usage": usage}
        if status != 200:
            body = {"error": {"message": "told to fail"}}
        raw = fields.get("raw")
        text = raw if isinstance(raw, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed

    def log_message(self, *arguments: object) -> None:
        pass


def user_text(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])
