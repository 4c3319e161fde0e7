"""A folder for temporary files whose path is too long for sockets: Ray starts all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayward.cluster import sockets

CODE = """
import os
from pathlib import Path
import ray
from rayward.cluster.connect import connect
from rayward.configs.sections.machines import Cluster

connect(Cluster(object_store_gib=0.1))
in_task = ray.get(ray.remote(num_cpus=0)(lambda: os.environ["TMPDIR"]).remote())
assert in_task == os.environ["TMPDIR"]
print(in_task, Path(in_task).resolve(), len(list(Path(in_task).glob("ray/session_2*"))))
"""


@pytest.mark.timeout(200)
def test_ray_starts_where_the_path_of_temporary_files_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / ("job-" + "1234567890" * 8)
    given.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"TMPDIR": str(given)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    link, target, sessions = done.stdout.split()[-3:]
    assert len(link) <= sockets.LONGEST and target == str(given) and sessions == "1"
    monkeypatch.setenv("TMPDIR", str(given))
    sockets.shorten_tmpdir()
    assert os.environ["TMPDIR"] == link, "the same for all runs"
    shutil.rmtree(given)
    other = tmp_path / ("other-" + "1234567890" * 8)
    other.mkdir()
    monkeypatch.setenv("TMPDIR", str(other))
    sockets.shorten_tmpdir()
    assert os.environ["TMPDIR"] != link and not Path(link).is_symlink(), "of a folder that is gone"
    Path(os.environ["TMPDIR"]).unlink()


def test_a_short_path_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("/tmp", "/scratch/" + "x" * 21):
        monkeypatch.setenv("TMPDIR", given)
        sockets.shorten_tmpdir()
        assert os.environ["TMPDIR"] == given
