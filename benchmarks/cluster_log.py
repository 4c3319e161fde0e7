"""Seconds of a run on a cluster: as a job of a real head, over three hosts beside one, and from a
host's cut to the sentence that names it.

python benchmarks/cluster_log.py --only job hosts cut --json FILE

The run is tests/tiny.yaml, every stage. job: a head with token authentication on this machine;
seconds count from the start of the command (`rayward submit`, and `ray job submit` with a run
folder of its own). hosts: cluster/local_cluster.sh with three hosts of two CPUs each (network
namespaces, so as root), one rank of the learners on each of two; beside it the same roles on a
local Ray. All hosts share this machine's cores, so three are no faster than one: the difference is
what they cost. cut: RL over those hosts, host 2 cut off; once with Ray's defaults and once with the
variables of docs/scale.md that make Ray notice sooner.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import versions
from tests.cluster.ray_head import ray_head

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TINY = ROOT / "tests" / "tiny.yaml"
RAYWARD = (sys.executable, "-m", "rayward.pipelines.cli")
CLUSTER = ("bash", str(ROOT / "cluster" / "local_cluster.sh"))
FIRST_ITERATION = "first RL iteration"
MARKS = {"sft: 1/": "first SFT step", "ppo: 1/": FIRST_ITERATION}
# Ranks of training and of the policy one a host; sizes decide no result.
SPREAD = {
    "train.workers": 2,
    "policy.workers": 2,
    **{f"{name}.threads": 1 for name in ("train", "policy", "critic", "reference", "reward")},
}
HOSTS = {"train.cpus": 1.5, "policy.cpus": 1.4, "rollout.cpus": 0.3}
ONE = {"train.cpus": 0.5, "policy.cpus": 0.2, "rollout.cpus": 0.2}
SOONER = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rayward-") as folder:
        for part in options.only:
            found |= PARTS[part](Path(folder))
    table("seconds", [(name, round(seconds, 1)) for name, seconds in found.items()])
    if options.json:
        written = {"seconds": found, "cores": os.cpu_count(), "versions": versions()}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def of_job(folder: Path) -> dict[str, float]:
    """From the start of the command to its first steps, by both commands."""
    found: dict[str, float] = {}
    for name in ("rayward submit", "ray job submit"):
        place = folder / name.split()[0]
        clean, run = place / "clean", place / "run"
        clean.mkdir(parents=True)
        (clean / "tiny.yaml").write_bytes(TINY.read_bytes())
        command = [*RAYWARD, "submit", "tiny.yaml", "--run", str(run)]
        if name == "ray job submit":
            command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--"]
            command += ["rayward", "align", "tiny.yaml", "--run", str(run)]
        # The job ends with the head.
        with ray_head(place) as head:
            environment = head.client(RAY_API_SERVER_ADDRESS=head.url)
            seconds = timed(command, clean, environment, until=FIRST_ITERATION)
        found |= {f"{name}: {what}": n for what, n in seconds.items()}
    return found


def of_hosts(folder: Path) -> dict[str, float]:
    """The road over three hosts, and on one."""
    with three_hosts({}) as environment:
        command = [*CLUSTER, "run", "rayward", "align", str(TINY), "--run", "three"]
        three = timed([*command, *sets(HOSTS)], folder, environment)
    command = [*RAYWARD, "align", str(TINY), "--run", "one", *sets(ONE)]
    one = timed(command, folder, environment)
    return {
        **{f"three hosts: {what}": n for what, n in three.items()},
        **{f"one host: {what}": n for what, n in one.items()},
    }


def of_cut(folder: Path) -> dict[str, float]:
    """From the cut of a host to the sentence, as RL goes on over three."""
    if not (folder / "one").is_dir():  # that of part hosts
        command = [*RAYWARD, "align", str(TINY), "--run", "one", *sets(ONE)]
        timed([*command, "--stages", "prepare,sft,reward"], folder, os.environ)
    found: dict[str, float] = {}
    for name, variables in (("defaults of Ray", {}), ("shortened", SOONER)):
        run = folder / name.split()[0]
        shutil.copytree(folder / "one", run, symlinks=True)
        shutil.rmtree(run / "rl", ignore_errors=True)
        with three_hosts(variables) as environment:
            command = [*CLUSTER, "run", "rayward", "rl", str(TINY), "--run", str(run)]
            command += [*sets(HOSTS), "--set", "rl.iterations=2000"]
            told, on = cut(command, run, folder, environment)
            found |= {f"cut to the sentence, {name}": told, f"cut to going on, {name}": on}
    return found


PARTS = {"job": of_job, "hosts": of_hosts, "cut": of_cut}


def cut(
    command: Sequence[str], run: Path, folder: Path, environment: Mapping[str, str]
) -> tuple[float, float]:
    """Seconds from the cut of host 2, after some iterations, to the sentence that names it, and to
    the next iteration on the hosts that are left.
    """
    process = started(command, folder, environment)
    metrics, deadline = run / "rl" / "ppo" / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"RL did not begin: {process.communicate()[0][-3000:]}")
        time.sleep(0.2)
    began = time.monotonic()
    subprocess.run([*CLUSTER, "cut", "2"], env=environment, check=True)
    told = 0.0
    for line in process.stdout or ():
        seconds = time.monotonic() - began
        print(f"{seconds:6.1f} s {line}", end="", flush=True)
        if " is gone" in line and not told:
            told = seconds
        elif "ppo: 1/" in line and told:
            process.kill()
            process.wait()
            return told, seconds
    raise SystemExit("RL ended")


def timed(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], until: str = ""
) -> dict[str, float]:
    """Seconds from the start of a command to the lines of MARKS, and to its end; or only as far as
    one of these lines, after which it is ended.
    """
    began, found = time.monotonic(), dict[str, float]()
    process = started(command, folder, environment)
    for line in process.stdout or ():
        print(line, end="", flush=True)
        for words, what in MARKS.items():
            if words in line:
                found.setdefault(what, time.monotonic() - began)
                print(f"== {found[what]:.1f} s to the {what}", flush=True)
        if until in found:
            process.kill()
            process.wait()
            return found
    if process.wait() or until:
        raise SystemExit(f"ended with {process.returncode}: {' '.join(command)}")
    return found | {"whole": time.monotonic() - began}


def started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """A command, with both of its outputs in one."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def sets(amounts: Mapping[str, Any]) -> list[str]:
    """Settings of the roles."""
    given = {**SPREAD, **amounts}
    return [word for key, n in given.items() for word in ("--set", f"resources.{key}={n}")]


@contextmanager
def three_hosts(variables: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment of local_cluster.sh's commands, with three hosts up."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    environment |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "LOCAL_CLUSTER": "rwlog",
        "LOCAL_CLUSTER_NET": "10.99.77",
        **variables,
    }
    try:
        subprocess.run([*CLUSTER, "up", "3"], env=environment, check=True)
        yield environment
    finally:
        subprocess.run([*CLUSTER, "down"], env=environment, check=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
