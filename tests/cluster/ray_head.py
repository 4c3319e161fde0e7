"""A head of Ray as one is started on a cluster, with token authentication and a dashboard, and what
is left on it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from rayward.cluster.ports import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MARK = "RAYWARD_TEST_HEAD"
"""Environment variable that the head's processes have, and all that come from them."""


RAYS_OWN = ("JobSupervisor", "_AutoscalingCoordinatorActor")
"""Actors of Ray's own: one ends just after its job; one is made by the first that trains, for all
that come, and stays."""


@dataclass(frozen=True)
class RayHead:
    """A head that is up."""

    gcs: str
    """HOST:PORT of Ray itself."""
    url: str
    """Of its dashboard."""
    token: str
    variables: dict[str, str]
    """Environment of its processes, and of a client, which does not know where it is."""
    session: int
    """Session of its processes, and of all but the drivers of jobs."""

    def client(self, **more: str | None) -> dict[str, str]:
        """A client's environment; None takes a variable away."""
        given = {name: value for name, value in self.variables.items() if name != MARK} | more
        return {name: value for name, value in given.items() if value is not None}

    def get(self, path: str, **query: str) -> Any:
        """What the dashboard answers."""
        answer = httpx.get(
            f"{self.url}{path}",
            params=query,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json()

    def living(self) -> list[str]:
        """Actors and placement groups of runs, and processes of engines, that are there."""
        found = []
        for kind, gone, name in (
            ("actors", "DEAD", "class_name"),
            ("placement_groups", "REMOVED", "placement_group_id"),
        ):
            answer = self.get(f"/api/v0/{kind}", detail="true", limit="1000")
            rows = answer["data"]["result"]["result"]
            found += [f"{kind}: {row[name]}" for row in rows if row["state"] != gone]
        titles = [title for _, title in self.processes()]
        found += [f"process: {title}" for title in titles if "VLLM" in title or "Engine" in title]
        return [name for name in found if not any(own in name for own in RAYS_OWN)]

    def processes(self) -> Iterator[tuple[psutil.Process, str]]:
        """All that come from the head, with their command lines."""
        for process in psutil.process_iter():
            try:
                # Workers write their titles over their environment, and jobs have own sessions.
                marked = process.environ().get(MARK) == self.variables[MARK]
                if marked or os.getsid(process.pid) == self.session:
                    yield process, " ".join(process.cmdline())
            except (psutil.Error, OSError):  # of another user, or gone
                continue

    def empty_within(self, seconds: float) -> float:
        """Wait until nothing of a run is there; the seconds that it took."""
        started_at = time.monotonic()
        until(lambda: not self.living(), seconds, lambda: str(self.living()))
        return time.monotonic() - started_at


def until(there: Callable[[], Any], seconds: float, why: Callable[[], str]) -> Any:
    """Wait for something; AssertionError with `why` where it does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := there():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds:.0f} s: {why()}")


@contextmanager
def ray_head(folder: Path, **variables: str) -> Iterator[RayHead]:
    """Start a head, with these variables; it ends with the block, and leaves nothing."""
    gcs, dashboard = free_port(), free_port()
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    commands = folder / "bin"  # as in a cluster's image: `rayward` is on the path
    commands.mkdir()
    (commands / "rayward").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m rayward.pipelines.cli "$@"\n'
    )
    (commands / "rayward").chmod(0o755)
    environment |= {
        "PATH": f"{commands}:{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # As the pods have it: `authOptions: {mode: token}`.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        MARK: token,
        **variables,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "4"]
    command += ["--port", str(gcs), "--include-dashboard", "true"]
    command += ["--dashboard-port", str(dashboard), "--object-store-memory", str(300 * 2**20)]
    short = f"/tmp/rw{os.getpid()}-{gcs}"  # sockets lie below it
    # Of a fixed number unless given: where another Ray on this machine has it, this one would take
    # no jobs.
    command += ["--dashboard-agent-listen-port", str(free_port())]
    command += ["--temp-dir", short, "--disable-usage-stats"]
    log = folder / "head.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=file, stderr=file, start_new_session=True
        )
    url = f"http://127.0.0.1:{dashboard}"
    head = RayHead(f"127.0.0.1:{gcs}", url, token, environment, process.pid)

    def up() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return bool(head.get("/api/jobs/") is not None)
        except httpx.HTTPError:
            return False

    try:
        until(up, 120, lambda: log.read_text()[-3000:])
        yield head
    finally:
        # Killed, since a head that is told to end waits half a minute for Ray's own actors.
        for other, _ in list(head.processes()):
            with suppress(psutil.Error):
                other.kill()
        process.wait(60)
        shutil.rmtree(short, ignore_errors=True)
