"""`rayward doctor` without a model: what it looks at, and what it finds where things are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayward.cluster.ports import free_port
from rayward.pipelines.cli import main
from rayward.pipelines.model_tools import machine_check
from rayward.pipelines.model_tools.machine_check import wanted


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_this_machine_is_fit_for_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--run", str(tmp_path / "not" / "yet")]) == 0
    said = capsys.readouterr().out
    assert "a run can start here" in said and "PROBLEM" not in said
    assert f"{tmp_path}: " in said and "starts one here" in said
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_the_packages_are_those_of_the_extra_and_of_what_it_names() -> None:
    cpu, gpu, none = (
        {f"{one.name}{one.specifier}" for one in wanted(extras)}
        for extras in ({"cpu"}, {"gpu"}, set())
    )
    assert "torch==2.13.0" in cpu and any(name.startswith("deepspeed==") for name in cpu & gpu)
    assert any(name.startswith("vllm==") for name in gpu - cpu)
    assert none < cpu and not any(name.startswith("torch") for name in none)


def test_another_version_and_a_missing_compiler_are_problems(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "deepspeed-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["doctor"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "deepspeed is 0.0.1, not ==" in said and "make install" in said
    assert "PROBLEM: compiler: no no-such-compiler: apt install g++, or set CXX" in said
    assert said.endswith("no run can start here")


def test_too_little_room_is_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_check, "LEAST_DISK_GIB", 10**9)
    assert main(["doctor"]) == 0
    assert "note: run folder: less than 1000000000 GiB" in capsys.readouterr().out


def test_another_python_and_a_cluster_that_is_not_there_are_problems_among_others(
    tmp_path: Path,
) -> None:
    other = tmp_path / "rayward-9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rayward\nVersion: 9\nRequires-Python: <3\n"
    )
    # A process of its own: one that has a Ray already joins no other.
    done = subprocess.run(
        [sys.executable, "-m", "rayward.pipelines.cli", "doctor"],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "RAY_ADDRESS": f"127.0.0.1:{free_port()}",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stdout.split())
    assert "PROBLEM: Python: it is 3." in said and ", not <3" in said
    assert "PROBLEM: Ray: nobody answers at " in said and "(RAY_ADDRESS)" in said
    # What else was found is told as well.
    assert "run folder" in said and said.endswith("no run can start here")
