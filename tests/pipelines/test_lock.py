"""One driver at a time on a run's folder, and the folder is free when that one is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayward.configs.load import ConfigError
from rayward.pipelines.run.lock import NAME, held
from tests.pipelines import commands

TINY = Path(__file__).parents[1] / "tiny.yaml"
HOLD = """
import sys, time
from pathlib import Path
from rayward.pipelines.run.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_command_is_refused_and_says_who_is_there(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    done = commands.rayward("prepare", TINY, "--run", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} is at work already: process {other.pid} on " in done.stderr
    assert "(0:00:0" in done.stderr and not (tmp_path / "prepare").exists()


def test_a_killed_process_leaves_the_folder_free(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    half = tmp_path / ".summary.json.123.writing"
    half.touch()
    with pytest.raises(ConfigError, match="two would overwrite each other"), held(tmp_path):
        pass
    assert half.exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(tmp_path):
        assert (tmp_path / NAME).read_text().startswith('{"pid"')
        assert not half.exists()


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    with held(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/nowhere/run")):
        with (
            pytest.raises(ConfigError, match=f"--run {folder}: nothing can be written there: "),
            held(folder),
        ):
            pass
