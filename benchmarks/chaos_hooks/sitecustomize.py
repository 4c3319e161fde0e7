"""Faults from within: found by every Python process of a run that benchmarks/chaos.py starts.

RAYWARD_CHAOS names a folder with faults.json, a list of {"id", "role", "phase", "nth", "rank",
"kind", "after_s"}. A process of that role that begins such a phase for the nth time claims the
fault (a file, so that each happens once) and harms itself after so many seconds. The code of
Rayward knows nothing of it: its functions are wrapped as their modules are imported.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

FOLDER = os.environ.get("RAYWARD_CHAOS")
ROLES = {
    "Policy": "policy",
    "Critic": "critic",
    "RolloutEngine": "engine",
    "RewardModel": "reward",
    "FrozenModel": "reference",
}
_seen: Counter = Counter()
_own = {"role": "driver", "rank": 0}
_faults: list = []


def begins(role: str, rank: int, phase: str) -> None:
    """A phase begins in this process: is there a fault for it?"""
    if (role, phase) == ("driver", "log"):
        with Path(FOLDER, "steps").open("a") as file:
            file.write(f"{time.time()} {os.getpid()}\n")
    _seen[role, phase] += 1
    for fault in _faults:
        if (fault["role"], fault["phase"]) != (role, phase) or fault["nth"] > _seen[role, phase]:
            continue
        if fault["rank"] not in (None, rank):
            continue
        try:
            claim = Path(FOLDER, f"claimed-{fault['id']}")
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        claim.write_text(json.dumps({"pid": os.getpid(), "at": time.time()}))
        harm(fault)
        return


def harm(fault: dict) -> None:
    kind = fault["kind"]

    def happens() -> None:
        Path(FOLDER, f"happened-{fault['id']}").write_text(f"{time.time()} {os.getpid()}")

    if kind == "disk":
        happens()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "slow":
        happens()
        time.sleep(3)
        return
    numbers = {"stop": signal.SIGSTOP, "head_stop": signal.SIGSTOP, "term": signal.SIGTERM}
    number = numbers.get(kind, signal.SIGKILL)

    def strike() -> None:
        pid = head() if kind in ("head", "head_stop") else os.getpid()
        # Where another fault came before, this one is none.
        if pid is not None:
            happens()
            os.kill(pid, number)

    timer = threading.Timer(fault["after_s"], strike)
    timer.daemon = True
    timer.start()


def head() -> int | None:
    """The process of Ray's head, which this one has started; None: it is gone, stopped, or not
    there yet.
    """
    import psutil
    from ray._private import worker

    node = worker._global_node
    servers = node.all_processes.get("gcs_server", []) if node else []
    alive = [server.process.pid for server in servers if server.process.poll() is None]
    well = [pid for pid in alive if psutil.Process(pid).status() != psutil.STATUS_STOPPED]
    return well[0] if well else None


def spans(module: object) -> None:
    timed = module.Timed
    plain = timed.span

    @contextmanager
    def span(self, name):
        rank = getattr(getattr(self, "rendezvous", None), "rank", None)
        begins(ROLES.get(type(self).__name__, "other"), rank, name)
        with plain(self, name):
            yield

    timed.span = span


def before(owner: object, name: str, phase: str) -> None:
    plain = getattr(owner, name)

    def wrapped(*arguments, **named):
        begins(_own["role"], _own["rank"], phase)
        return plain(*arguments, **named)

    setattr(owner, name, wrapped)


def train_worker(module: object) -> None:
    plain = module.start

    def start(job):
        context = plain(job)
        _own.update(role="train", rank=context.rank)
        return context

    module.start = start


def engine(module: object) -> None:
    before(module.TrainEngine, "step", "update")
    before(module.TrainEngine, "save_state", "checkpoint")
    before(module, "save_model", "save")


HOOKS = {
    "rayward.actors.spans": spans,
    "rayward.actors.training.engine": engine,
    "rayward.actors.training.worker": train_worker,
    "rayward.actors.checkpoints": lambda module: before(module.Checkpoints, "complete", "manifest"),
    "rayward.pipelines.run.stage": lambda module: before(module.Stage, "finish", "finish"),
    "rayward.pipelines.run.metrics": lambda module: before(module.Metrics, "log", "log"),
    "rayward.pipelines.rl.iteration_files": lambda module: before(
        module.IterationWriter, "save", "record"
    ),
}


class Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of a module of HOOKS right after its import."""

    def find_spec(self, name, path, target=None):
        if name not in HOOKS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            HOOKS[name](module)

        spec.loader.exec_module = exec_module
        return spec


if FOLDER:
    _faults = json.loads(Path(FOLDER, "faults.json").read_text())
    sys.meta_path.insert(0, Finder())
