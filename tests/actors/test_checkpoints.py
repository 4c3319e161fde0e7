"""A checkpoint is one only where every file is whole; what is not costs no other one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from rayward.actors import checkpoints, pulse
from rayward.actors.checkpoints import MANIFEST, Checkpoints
from rayward.actors.training.state_files import save


def write(made: Checkpoints, step: int, text: str = "weights") -> Path:
    place = made.new(step)
    (place / "state").mkdir()
    (place / "state" / "rank0.pt").write_text(f"{text} {step}")
    (place / "random-0.pt").write_bytes(b"\\0" * 100)
    return place


def test_the_last_whole_one_is_found(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path, keep=2)
    assert made.latest() == (None, [])
    for step in (2, 10, 30):
        write(made, step)
        done = made.complete(step, {"epoch": step // 10})
        assert (done.step, dict(done.info)) == (step, {"epoch": step // 10})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000030"]
    latest, broken = made.latest()
    assert latest == done and not broken
    assert (latest.folder / "state" / "rank0.pt").read_text() == "weights 30"
    made.drop()
    assert not tmp_path.exists() and made.latest() == (None, [])


@pytest.mark.parametrize("harm", ["short", "other", "gone", "no manifest", "half a manifest"])
def test_a_torn_one_costs_itself_only(tmp_path: Path, harm: str) -> None:
    made = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        write(made, step)
        made.complete(step, {})
    hurt = tmp_path / "step-00000002"
    file, manifest = hurt / "state" / "rank0.pt", hurt / MANIFEST
    match harm:
        case "short":
            file.write_text("wei")
        case "other":
            file.write_text("weights 3")
        case "gone":
            file.unlink()
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            manifest.write_bytes(manifest.read_bytes()[:40])
    latest, (why,) = made.latest()
    assert latest and latest.step == 1 and why.startswith(str(hurt))


def test_one_that_was_passed_over_does_not_outlive_those_after_it(tmp_path: Path) -> None:
    """Its steps are done again: what is written meanwhile must not go as the older one."""
    made = Checkpoints(tmp_path, keep=1)
    write(made, 6)
    made.complete(6, {})
    (tmp_path / "step-00000006" / MANIFEST).unlink()
    for step in (2, 3):
        write(made, step)
        made.complete(step, {})
        latest, _ = made.latest()
        assert latest and latest.step == step
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_what_was_half_written_is_none_and_goes(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    write(made, 1)
    made.complete(1, {})
    half = write(made, 2)
    latest, broken = Checkpoints(tmp_path).latest()
    assert latest and latest.step == 1 and not broken and not half.exists()


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Checkpoints(tmp_path)
    write(made, 1)
    made.complete(1, {})
    write(made, 2)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(path: Path) -> None:
        raise full

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(checkpoints, "_flush", fail)
        made.complete(2, {})
    latest, _ = made.latest()
    assert latest and latest.step == 1
    write(made, 2)
    assert made.complete(2, {}).step == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_is_full_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """A real one: torch has an error of its own for it."""
    weights = {"weight": torch.arange(100_000.0)}
    with pytest.raises(OSError):
        save(weights, Path("/dev/full"))
    before = pulse._ticks
    save(weights, tmp_path / "weights.pt")
    assert pulse._ticks > before, "writing is a sign of life"
    saved = torch.load(tmp_path / "weights.pt", mmap=True, weights_only=True)
    assert torch.equal(saved["weight"], weights["weight"])
