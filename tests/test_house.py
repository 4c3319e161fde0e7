"""The house as its tools and its users see it: a wheel beside folders of the same names, and a lint
that sees through `package-dir`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("actors", "algorithms", "cluster", "configs", "data", "pipelines")
UPWARD = {
    "actors": "rayward.pipelines.run.stage",
    "algorithms": "rayward.actors.calls",
    "cluster": "rayward.actors.calls",
    "configs": "rayward.data.records",
    "data": "rayward.algorithms.schedule",
    "pipelines/run": "rayward.pipelines.stages.sft",
}
"""For each floor something that lies above it, or beside it and is not for it."""


def command(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command printed; it may fail."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's own files."""
    folder = tmp_path_factory.mktemp("house") / "rayward"
    hidden = shutil.ignore_patterns(".*", "build", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=hidden, copy_function=shutil.copy2)
    return folder


def test_lint_finds_an_upward_import_and_a_type_error_on_each_floor(checkout: Path) -> None:
    environment = ROOT / ".venv"
    if not environment.is_dir():
        pytest.skip("make lint works in .venv, and these tests run in another environment")
    for room, module in UPWARD.items():
        text = f"import {module}\n\nplanted: int = 'text'\n__all__ = ['{module.split('.')[0]}']\n"
        (checkout / room / "planted.py").write_text(text)
    stamps = [
        word for kind in ("cpu", "gpu") for word in ("-o", environment / f".installed-{kind}")
    ]
    lint = command("make", "lint", f"VENV={environment}", *stamps, cwd=checkout)
    for room in UPWARD:
        (checkout / room / "planted.py").unlink()
    assert lint.returncode != 0
    for room, module in UPWARD.items():
        assert f"{room}/planted.py:3: error: Incompatible types" in lint.stdout, room
        importer = f"rayward.{room.replace('/', '.')}.planted"
        assert f"{importer} -> {module}" in lint.stdout, f"{importer}\n{lint.stdout}"
    assert "mypy,import-linter found something" in lint.stderr


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the project's wheel was installed, without what it needs."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq")
    built = command(
        *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ".", cwd=checkout
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("rayward-*.whl")
    done = command(*pip, "install", "--no-deps", "--target", target, wheel, cwd=wheels)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def neighbours(tmp_path: Path) -> Path:
    """A user's folder with modules that are called as our floors are."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "configs.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "cluster.py").write_text("WHOSE = 'theirs'\n")
    row = {"instruction": "Say hi.", "input": "", "output": "Hi."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_a_wheel_holds_all_that_the_folders_hold(installed: Path) -> None:
    kept = {".py", ".yaml", ".toml", ".txt", ".html"}
    for floor in FLOORS:
        ours = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / floor).rglob("*")
            if path.suffix in kept
        }
        theirs = {
            path.relative_to(installed / "rayward").as_posix()
            for path in (installed / "rayward" / floor).rglob("*")
            if path.suffix in kept
        }
        assert theirs == ours, floor
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"rayward", "bin"}, "nothing of ours lies beside other packages"


def test_commands_run_beside_folders_of_the_same_names(installed: Path, neighbours: Path) -> None:
    rayward = (sys.executable, "-m", "rayward.pipelines.cli")
    shown = command(*rayward, "--help", cwd=neighbours, PYTHONPATH=str(installed))
    assert shown.returncode == 0 and "align" in shown.stdout, shown.stderr
    read = command(
        *rayward, "data", "stats", "rows.jsonl", cwd=neighbours, PYTHONPATH=str(installed)
    )
    assert read.returncode == 0 and "records: conversation" in read.stdout, read.stderr


def test_a_ray_task_finds_ours_and_theirs(installed: Path, neighbours: Path) -> None:
    """As with `ray job submit --working-dir .`, which puts the user's folder first on the path."""
    (neighbours / "job.py").write_text(
        """
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         object_store_memory=10**8,
         runtime_env={"working_dir": "."})


@ray.remote
def found():
    import cluster, configs, data
    import rayward.actors.group, rayward.data.records

    whose = [module.WHOSE for module in (cluster, configs, data)]
    return rayward.data.records.__file__, whose


print(*ray.get(found.remote()))
"""
    )
    done = command(sys.executable, "job.py", cwd=neighbours, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr[-2000:]
    expected = f"{installed / 'rayward/data/records.py'} ['theirs', 'theirs', 'theirs']"
    assert done.stdout.strip() == expected
