"""Addresses at which there is no cluster to be joined: told in one sentence, within seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rayward.cluster.ports import free_port
from rayward.cluster.reach import Head, _check_reached, check_joins
from rayward.configs.load import ConfigError
from rayward.pipelines.cli import main

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


class Other(BaseHTTPRequestHandler):
    """Answers every request with 501."""

    def log_message(self, *_: object) -> None:
        """Nothing: the commands' own words are looked at."""


@pytest.fixture(scope="module")
def other() -> Iterator[int]:
    """The port of a service that is no Ray, on every address of this machine."""
    server = ThreadingHTTPServer(("", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a service that never answers."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("rayward.cluster.reach.ANSWER_WITHIN_S", 2)


def told(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error of a command that ends with 2, soon."""
    began = time.monotonic()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("rayward: ") and error.count("\n") == 1, error
    assert time.monotonic() - began < 20
    return error


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{nobody}", "nobody answers at"),
        ("127.0.0.1:{other}", "is no head of Ray"),
        ("127.0.0.1:{silent}", "is no head of Ray"),
        ("no-such-host.invalid:6379", "no-such-host.invalid"),
        (
            "http://127.0.0.1:8265",
            "the address of a dashboard, which takes jobs: hand the run over",
        ),
        ("ray://127.0.0.1:10001", "Ray Client cannot run this"),
        ("nonsense", "is nonsense, which is no address of Ray"),
        ("127.0.0.1:99999", "is 127.0.0.1:99999, which is no address of Ray"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(
    address: str, words: str, other: int, silent: int
) -> None:
    place = address.format(nobody=free_port(), other=other, silent=silent)
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        check_joins(place, "cluster.address")
    assert words in str(error.value) and "cluster.address" in str(error.value)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("by", ["RAY_ADDRESS", "cluster.address"])
def test_align_says_it_before_anything_is_made(by: str, tmp_path: Path) -> None:
    """In a process of its own: one that has a Ray already joins no other."""
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "rayward.pipelines.cli", "align", TINY]
    command += ["--run", str(tmp_path / "run")]
    if by == "cluster.address":
        command += ["--set", f"{by}={place}"]
    given = {"RAY_ADDRESS": place} if by == "RAY_ADDRESS" else {}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | given, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "nobody answers at" in done.stderr and by in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:{nobody}", "the connection was refused"),
        ("http://127.0.0.1:{other}", "is no dashboard of Ray (status 501)"),
        ("http://127.0.0.1:{silent}", "no answer within 2 s"),
        ("http://no-such-host.invalid", "nobody answers at http://no-such-host.invalid"),
        ("ray://127.0.0.1:10001", "jobs are handed over by HTTP"),
        ("127.0.0.1:{nobody}", "nobody answers at"),
        (":8265", "--address is :8265, which is no address of Ray"),
    ],
)
def test_submit_says_what_is_wrong_with_an_address(
    address: str, words: str, other: int, silent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place = address.format(nobody=free_port(), other=other, silent=silent)
    assert words in told(["submit", "--attach", "job", "--address", place], capsys)
    assert words in told(["submit", TINY, "--run", "/shared/x", "--address", place], capsys)


@pytest.mark.parametrize("file", [None, "/not/there"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:{other}", "127.0.0.1:{other}"])
def test_a_token_that_is_wanted_and_not_there_is_told(
    address: str, file: str | None, other: int, tmp_path: Path
) -> None:
    # Ray reads it once, so in a process of its own.
    place = address.format(other=other)
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    if file:
        environment["RAY_AUTH_TOKEN_PATH"] = file
    done = subprocess.run(
        [sys.executable, "-m", "rayward.pipelines.cli", "submit", "--attach", "job"]
        + ["--address", place],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("rayward: a token is wanted here for the cluster at "), done
    assert done.stderr.count("\n") == 1 and f":{other} (--address)" in done.stderr
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_dashboard_of_another_machine_for_itself_alone_is_told(host: str) -> None:
    # 203.0.113.0/24 is nobody's (RFC 5737).
    head = Head("203.0.113.1:6379", f"http://{host}:8265", {}, ())
    with pytest.raises(ConfigError, match="ray start --head --dashboard-host 0.0.0.0"):
        _check_reached(head, "--address")


@pytest.mark.parametrize(
    ("address", "dashboard"),
    [
        ("203.0.113.1:6379", "203.0.113.1:8265"),
        ("127.0.0.1:6379", "127.0.0.1:8265"),
        (f"{socket.gethostname()}:6379", "127.0.0.1:8265"),
    ],
)
def test_a_dashboard_that_is_reached_passes(address: str, dashboard: str) -> None:
    _check_reached(Head(address, f"http://{dashboard}", {}, ()), "--address")
