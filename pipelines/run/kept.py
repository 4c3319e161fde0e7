"""Finished stages kept by what they were made of, for runs in other folders that would make the
same: asked for by the variable RAYWARD_CACHE, which names the folder.

Large files are linked, not copied, where folders share a file system. Nothing is ever deleted here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayward.pipelines.run import earlier
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.stage import Stage, versions

VARIABLE = "RAYWARD_CACHE"
LINKED = (".jsonl", ".arrow")
"""Files that are never changed once they are written: two names of one are as good as two files."""
METRICS = "kept.json"


def take(stage: Stage) -> dict[str, Any] | None:
    """Fill the stage's folder with what was kept; its metrics. None where there is nothing."""
    folder = _folder(stage)
    if folder is None or not (folder / METRICS).is_file():
        return None
    for path in folder.iterdir():
        if path.name != METRICS:
            _copy(path, stage.folder / path.name)
    return read_json(folder / METRICS)


def keep(stage: Stage, metrics: Mapping[str, Any]) -> None:
    """Keep what the stage has made, before it is finished."""
    folder = _folder(stage)
    if folder is None or folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Under its own name only when it is whole: another run may look meanwhile.
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    for path in stage.folder.iterdir():
        _copy(path, made / path.name)
    write_json(made / METRICS, dict(metrics))
    try:
        made.rename(folder)
    except OSError:  # the other one was faster, with the same
        shutil.rmtree(made)


def _folder(stage: Stage) -> Path | None:
    """Where the stage is kept; None without RAYWARD_CACHE."""
    root = os.environ.get(VARIABLE)
    if not root:
        return None
    # Versions too: another tokenizer library may read the same file otherwise.
    made_of = [stage.fingerprint, stage.given, earlier.ROWS, versions()]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    return Path(root) / stage.name / key


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    if source.suffix in LINKED:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copy2(source, target)
