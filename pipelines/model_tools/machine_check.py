"""`rayward doctor` without a model: can a run start here, or on the cluster that it would join?"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayward.configs.load import ConfigError
from rayward.configs.sections.machines import Cluster
from rayward.pipelines.model_tools.between_nodes import between_nodes
from rayward.pipelines.model_tools.found import Found

LEAST_DISK_GIB, SKEW_S = 10, 5.0
CLOCK_WITHIN_S = 60


def examine_machine(run: Path) -> Iterator[Found]:
    """Look at everything a run needs, but the model; `run`: where its folder will lie."""
    yield _python()
    yield _packages()
    yield _compiler()
    yield _shared_memory()
    yield _disk("run folder", run)
    yield _locks(run)
    yield _disk("temporary files", Path(tempfile.gettempdir()))
    yield _gpus()
    yield from _ray()


# ---- what is installed


def _python() -> Found:
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata("rayward")["Requires-Python"]
    if not wanted:
        return Found("Python", found)
    problem = "" if SpecifierSet(wanted).contains(found) else f"it is {found}, not {wanted}"
    return Found("Python", f"{found} (wanted {wanted})", problem)


def _packages() -> Found:
    """Against the versions that are known to work together, as the package declares them."""
    kind = _kind()
    wrong = []
    known = wanted({kind})
    for requirement in known:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not there ({requirement.specifier})")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        fix = "make install" if kind == "cpu" else "make install-gpu"
        return Found(
            f"packages ({kind})",
            f"{len(wrong)} of {len(known)} are others",
            f"{'; '.join(wrong)}: {fix} brings the set that was tested",
        )
    return Found(f"packages ({kind})", f"{len(known)} as declared")


def wanted(extras: set[str]) -> list[Requirement]:
    """What the package declares for these extras, and those that they name."""
    found: dict[str, Requirement] = {}
    asked, seen = {"", *extras}, set[str]()
    declared = [Requirement(line) for line in metadata.requires("rayward") or []]
    while new := asked - seen:
        seen |= new
        for requirement in declared:
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in new):
                continue
            if requirement.name == "rayward":
                asked |= requirement.extras
            else:
                found[str(requirement)] = requirement
    return list(found.values())


def _kind() -> str:
    try:
        import torch
    except ImportError:
        return "cpu"
    return "gpu" if torch.version.cuda else "cpu"


def _compiler() -> Found:
    name = os.environ.get("CXX") or "g++"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = []
    if not shutil.which(name):
        missing.append(f"no {name}: apt install g++, or set CXX")
    if not header.is_file():
        missing.append(
            f"no {header}: apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        )
    return Found("compiler", shutil.which(name) or "none", "; ".join(missing))


# ---- memory and disks


def _shared_memory() -> Found:
    store = Cluster().object_store_gib
    path = Path("/dev/shm")
    if not path.is_dir():
        return Found("shared memory", "no /dev/shm", note="Ray keeps its objects on the disk")
    free = shutil.disk_usage(path).free / 2**30
    note = ""
    if free < store:
        note = (
            f"Ray's store of cluster.object_store_gib ({store:g}) does not fit: raise it "
            "(docker run --shm-size), or lower the setting"
        )
    return Found("shared memory", f"{free:.1f} GiB free", note=note)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _disk(what: str, folder: Path) -> Found:
    place = _existing(folder)
    free = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK):
        return Found(what, str(place), f"{place} cannot be written by this user")
    note = f"less than {LEAST_DISK_GIB} GiB" if free < LEAST_DISK_GIB else ""
    return Found(what, f"{place}: {free:.0f} GiB free", note=note)


def _locks(run: Path) -> Found:
    place = _existing(run)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        note = "two commands on one run folder would not see each other"
        return Found("file locks", error.strerror or str(error), note=note)
    return Found("file locks", "there are some")


# ---- GPUs and Ray


def _gpus() -> Found:
    try:
        import torch
    except ImportError:
        return Found("GPUs", "torch is not there", note="this machine reads data and prints plans")
    if not torch.version.cuda:
        return Found("GPUs", "none: torch is built for the CPU")
    if not torch.cuda.is_available():
        return Found(
            "GPUs",
            f"none; torch is built for CUDA {torch.version.cuda}",
            note="is the driver installed, and as new as that? see nvidia-smi",
        )
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Found("GPUs", f"{len(names)} x {names[0]}")


def _ray() -> Iterator[Found]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Found("Ray", "starts one here: RAY_ADDRESS is not set")
        return
    import ray

    from rayward.cluster.connect import connect

    try:
        connect(Cluster())
    except ConfigError as error:  # it says what to set
        yield Found("Ray", f"{address}: not joined", str(error))
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    has = ", ".join(f"{total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    yield Found("Ray", f"{address}: {len(nodes)} nodes, {has}")
    yield _clocks(nodes)
    yield from between_nodes(nodes)


def _clocks(nodes: list[dict]) -> Found:
    """How far the nodes' clocks are from this one's, as far as an answer's time allows."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def now() -> float:
        return time.time()

    furthest, whose = 0.0, ""
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked = time.time()
        try:
            told = ray.get(now.options(scheduling_strategy=place).remote(), timeout=CLOCK_WITHIN_S)
        except RayError as error:  # busy, or gone by now
            silent = f"{node['NodeManagerAddress']} has not told its time within {CLOCK_WITHIN_S} s"
            return Found("clocks", "not compared", note=f"{silent} ({type(error).__name__})")
        # Right clocks tell a time between the question and its answer.
        apart = max(asked - told, told - time.time(), 0.0)
        if apart >= furthest:
            furthest, whose = apart, node["NodeManagerAddress"]
    note = f"{whose} is {furthest:.0f} s from this machine" if furthest > SKEW_S else ""
    return Found("clocks", f"within {furthest:.1f} s of each other", note=note)
