"""Faults drawn by seed into tiny runs: is anything lost, doubled, or of other bits at the end?

    python benchmarks/chaos.py --faults 500 --seed 1 --work DIR --json FILE [--cases ppo,sft]
    python benchmarks/chaos.py --sum DIR/ledger-1.jsonl OTHER/ledger-2.jsonl [--json FILE]

Each run of a case gets some faults: a process killed (SIGKILL), stopped (SIGSTOP), slow, out of
disk in the midst of a phase, the driver ended by SIGTERM or SIGKILL, Ray's head killed or stopped.
The same command is given until the run is whole, and what it leaves is compared with an undisturbed
run: metrics.jsonl but for the times, and every other file by its bytes. DIR keeps a ledger, so the
faults may take several sittings: the same command goes on. --sum: the figures of several ledgers,
as of sittings side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "tests" / "tiny.yaml"
HOOKS = HERE / "chaos_hooks"
RL = ("rl.iterations=8", "rl.monitor.every=1", "rl.reward_scaling=std_then_clip")
ALWAYS = ("checkpoint.every_steps=1", "cluster.call_timeout_s=25", "cluster.retries=1000")


@dataclass(frozen=True)
class Case:
    """A stage with settings, and the (role, phase) pairs that a fault may be drawn for."""

    command: str
    folder: str
    settings: tuple[str, ...]
    phases: tuple[tuple[str, str], ...]
    ranks: int = 1


DRIVER = (("driver", "manifest"), ("driver", "log"), ("driver", "finish"))
TRAIN = (
    ("train", "update"),
    ("train", "checkpoint"),
    ("train", "manifest"),
    ("train", "save"),
    ("driver", "log"),
    ("driver", "finish"),
)
ONLINE = (
    ("engine", "generate"),
    ("reward", "score"),
    ("policy", "update"),
    ("policy", "checkpoint"),
    ("policy", "send_weights"),
    ("driver", "record"),
    *DRIVER,
)
CRITIC = (("critic", "values"), ("critic", "update"), ("critic", "checkpoint"))
REFERENCE = (("reference", "logprobs"),)
CASES = {
    "sft": Case("sft", "sft", ("sft.epochs=2", "sft.keep=best", "sft.validate_every=7"), TRAIN),
    "sft2": Case("sft", "sft", ("sft.epochs=2", "resources.train.workers=2"), TRAIN, 2),
    "reward": Case("reward", "reward", ("reward.epochs=3",), TRAIN),
    "dpo": Case("dpo", "dpo", ("dpo.epochs=3",), TRAIN),
    "sample": Case("sample", "sample", (), (("engine", "generate"), ("reward", "score"), *TRAIN)),
    "evaluate": Case(
        "evaluate", "evaluate", (), (("engine", "generate"), ("reference", "logprobs"), *DRIVER)
    ),
    "ppo": Case(
        "rl", "rl/ppo", ("rl.algorithms=[ppo]", "rl.ppo.kl_target=0.01", *RL), ONLINE + CRITIC
    ),
    "apa": Case("rl", "rl/apa", ("rl.algorithms=[apa]", *RL), ONLINE + CRITIC + REFERENCE),
    "rloo": Case(
        "rl",
        "rl/rloo",
        (
            "rl.algorithms=[rloo]",
            "rl.mode=one_step_off",
            "resources.rollout.workers=3",
            "resources.policy.workers=2",
            *RL,
        ),
        ONLINE,
        2,
    ),
}
# As tests/tiny.yaml has it, so that a finished run of that is the undisturbed one.
CASES["plain"] = replace(CASES["ppo"], settings=("rl.algorithms=[ppo]",))
KINDS = ("kill", "kill", "stop", "slow")
HEAD = ("head", "head_stop")
"""Ray's head killed, or stopped."""
EARLIER = {
    "sft": (),
    "reward": ("sft",),
    "dpo": ("sft",),
    "sample": ("sft", "reward"),
    "rl": ("sft", "reward"),
    "evaluate": ("sft", "reward", "sample"),
}
BY_CLOCK = {"metrics.jsonl", "spans.jsonl", "trace.json", "manifest.json", "README.md"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-run", type=int, default=20)
    parser.add_argument("--json", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--work", type=Path)
    what.add_argument("--sum", type=Path, nargs="+", metavar="LEDGER")
    parser.add_argument("--cases", default=",".join(name for name in CASES if name != "plain"))
    parser.add_argument("--until", type=float, default=float("inf"), help="minutes")
    options = parser.parse_args()
    if options.sum:
        once = {ledger.resolve() for ledger in options.sum if ledger.is_file()}
        if len(once) < len(options.sum):
            parser.error("--sum: a ledger is not there, or stands twice")
        tell(figures([row for ledger in options.sum for row in read(ledger)]), options.json)
        return
    chaos = Chaos(options.work.resolve(), options.seed, options.per_run)
    ends = time.monotonic() + 60 * options.until
    for case in round_robin(options.cases.split(",")):
        if chaos.injected >= options.faults or time.monotonic() > ends:
            break
        chaos.one(case)
        tell(figures(chaos.rows), options.json)


def tell(numbers: dict[str, Any], file: Path | None) -> None:
    text = json.dumps(numbers, indent=1)
    print(text, flush=True)
    if file:
        file.write_text(text + "\n", encoding="utf-8")


def round_robin(names: list[str]) -> Any:
    while True:
        yield from names


class Chaos:
    """Runs with faults; the ledger has a line for each fault that happened, and for each run."""

    def __init__(self, work: Path, seed: int, per_run: int) -> None:
        self.work, self.seed, self.per_run = work, seed, per_run
        self.work.mkdir(parents=True, exist_ok=True)
        self.ledger = work / f"ledger-{seed}.jsonl"
        self.rows = read(self.ledger)

    @property
    def injected(self) -> int:
        return sum(len(row["faults"]) for row in self.rows)

    # ---- one run

    def one(self, name: str) -> None:
        """A run of a case with faults; compared, and told to the ledger."""
        case, number = CASES[name], len(self.rows)
        whole = self._whole(name)
        random_ = random.Random(f"{self.seed}-{number}-{name}")
        faults = [self._fault(case, random_, index) for index in range(self.per_run)]
        run, claims = self.work / "run", self.work / "claims"
        for folder in (run, claims):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        (claims / "faults.json").write_text(json.dumps(faults))
        self._link(case, run)
        environment = {
            **os.environ,
            "RAYWARD_CHAOS": str(claims),
            "PYTHONPATH": os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")]),
        }
        started_at, tries, stopped = time.monotonic(), 0, ""

        def happened() -> list[dict[str, Any]]:
            return [one for one in faults if (claims / f"happened-{one['id']}").exists()]

        def heads() -> int:
            return sum(one["kind"] in HEAD for one in happened())

        log = self.work / f"log-{number:04d}-{name}.txt"
        while tries < 3 * self.per_run + 3:
            tries += 1
            heads_before = heads()
            told = log.stat().st_size if log.exists() else 0
            with log.open("a") as file:
                done = subprocess.run(
                    self._command(case, run),
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=1500,
                    check=False,
                )
            if done.returncode == 0:
                break
            headless = b"Ray's head at" in log.read_bytes()[told:] and heads() > heads_before
            # The last: SIGTERM after all was written, as Python ends.
            ended = done.returncode in (130, -signal.SIGKILL, -signal.SIGTERM)
            if not ended and not (headless and done.returncode == 1):
                stopped = log.read_text()[-2000:]
                break
            time.sleep(2)  # the processes of a killed driver end when they see it
        row = {
            "case": name,
            "run": number,
            "faults": [one | next_step(claims, one) for one in happened()],
            "tries": tries,
            "status": done.returncode,
            "stopped": stopped,
            "seconds": round(time.monotonic() - started_at, 1),
            **(differences(case, whole, run) if done.returncode == 0 else {}),
        }
        self.rows.append(row)
        with self.ledger.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _fault(self, case: Case, random_: random.Random, index: int) -> dict[str, Any]:
        role, phase = random_.choice(case.phases)
        kinds = KINDS
        if role == "driver":
            kinds = ("kill", "kill", "term", "term", *HEAD)
        elif phase in ("manifest", "checkpoint") and case.ranks == 1:
            kinds = (*KINDS, "disk")
        return {
            "id": index,
            "role": role,
            "phase": phase,
            "kind": random_.choice(kinds),
            # Mostly soon: a process that is started anew counts from the first again.
            "nth": random_.choice((1, 1, 2, 3)) if phase not in ("save", "finish") else 1,
            "rank": random_.randrange(case.ranks) if role in ("policy", "train") else None,
            "after_s": round(random_.choice([0.0, random_.uniform(0, 0.05), random_.random()]), 3),
        }

    def _whole(self, name: str) -> Path:
        """The undisturbed run of a case, made once."""
        case, run = CASES[name], self.work / "whole" / name
        if not (run / case.folder / "manifest.json").is_file():
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir(parents=True)
            self._link(case, run)
            started_at = time.monotonic()
            subprocess.run(
                self._command(case, run), check=True, timeout=1500, stdout=subprocess.DEVNULL
            )
            (run.parent / f"{name}.txt").write_text(str(time.monotonic() - started_at))
        return run

    def _link(self, case: Case, run: Path) -> None:
        base = self.work / "base"
        if not (base / "sample" / "manifest.json").is_file():
            stages = [
                "align",
                str(TINY),
                "--run",
                str(base),
                "--stages",
                "prepare,sft,reward,sample",
            ]
            subprocess.run([*RAYWARD, *stages], check=True, timeout=1500)
        for stage in ("prepare", *EARLIER[case.command]):
            (run / stage).symlink_to(base / stage)

    def _command(self, case: Case, run: Path) -> list[str]:
        settings = [part for one in (*ALWAYS, *case.settings) for part in ("--set", one)]
        return [*RAYWARD, case.command, str(TINY), "--run", str(run), *settings]

    def killed(self, name: str, times: int) -> dict[str, Any]:
        """A run of a case whose driver is killed so many times, at moments drawn over the time that
        the undisturbed one takes; what is lost, doubled, different.
        """
        case, whole, run = CASES[name], self._whole(name), self.work / f"killed-{name}"
        seconds = float((self.work / "whole" / f"{name}.txt").read_text())
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        self._link(case, run)
        random_ = random.Random(f"{self.seed}-{name}")
        for _ in range(times):
            with subprocess.Popen(
                self._command(case, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(random_.uniform(0.2, 1.0) * seconds)
                process.kill()
            time.sleep(2)
        subprocess.run(self._command(case, run), check=True, timeout=1500)
        return differences(case, whole, run)


def next_step(claims: Path, fault: dict[str, Any]) -> dict[str, float]:
    """Seconds from a fault to the next step that is told, if no other fault comes between.

    Of a driver's, to that of the next driver: this one may do some more before it ends.
    """
    times = {path: float(path.read_text().split()[0]) for path in claims.glob("happened-*")}
    happened = claims / f"happened-{fault['id']}"
    at, pid = times.pop(happened), happened.read_text().split()[1]
    steps = claims / "steps"
    told = [line.split() for line in steps.read_text().splitlines()] if steps.is_file() else []
    following = min(
        (float(time) for time, of in told if float(time) > at and of != pid), default=None
    )
    if following is None or any(at <= other <= following for other in times.values()):
        return {}
    return {"next_step_s": round(following - at, 1)}


def read(ledger: Path) -> list[dict[str, Any]]:
    """The runs of a ledger, each with its faults."""
    lines = ledger.read_text().splitlines() if ledger.is_file() else []
    return [json.loads(line) for line in lines]


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the runs of ledgers."""
    whole = [row for row in rows if row["status"] == 0]
    injected = sum(len(row["faults"]) for row in rows)
    kinds: dict[str, Counter[str]] = {}
    waits: dict[str, list[float]] = {}
    for row in rows:
        for fault in row["faults"]:
            name = f"{fault['kind']} {fault['role']} {fault['phase']}"
            kinds.setdefault(name, Counter())["injected"] += 1
            kinds[name]["survived"] += row["status"] == 0
            if "next_step_s" in fault and fault["kind"] != "slow":
                waits.setdefault(f"{fault['kind']} {fault['role']}", []).append(
                    fault["next_step_s"]
                )
    return {
        "injected": injected,
        "survived": sum(len(row["faults"]) for row in whole),
        "stopped_with_reason": sum(row["status"] in (1, 2) for row in rows),
        "lost": sum(row["lost"] for row in whole),
        "doubled": sum(row["doubled"] for row in whole),
        "different_bits": sum(len(row["different"]) for row in whole),
        "runs": len(rows),
        "seconds_a_fault": round(sum(row["seconds"] for row in rows) / max(1, injected), 1),
        "to_next_step_s": {
            name: {"median": statistics.median(waits[name]), "of": len(waits[name])}
            for name in sorted(waits)
        },
        "by_kind": {name: dict(kinds[name]) for name in sorted(kinds)},
    }


RAYWARD = (sys.executable, "-m", "rayward.pipelines.cli")


def rows_of(run: Path, case: Case) -> list[dict[str, Any]]:
    """The lines of metrics without what the clock decides."""
    lines = (run / case.folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "time"}
        for line in lines
    ]


def files_of(run: Path, case: Case) -> dict[str, bytes]:
    """All other files of the part, but logs of the clock."""
    folder = run / case.folder
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not {"ray", "tensorboard"}.intersection(path.relative_to(folder).parts)
        and path.name not in BY_CLOCK
    }


def differences(case: Case, whole: Path, run: Path) -> dict[str, Any]:
    """Steps that are lost or doubled, and files of other bytes."""
    ours, theirs = rows_of(run, case), rows_of(whole, case)
    steps, wanted = [row["step"] for row in ours], [row["step"] for row in theirs]
    files, others = files_of(run, case), files_of(whole, case)
    different = [
        name for name in files.keys() | others.keys() if files.get(name) != others.get(name)
    ]
    if ours != theirs:
        different.append("metrics.jsonl")
    return {
        "lost": len(set(wanted) - set(steps)),
        "doubled": len(steps) - len(set(steps)),
        "different": sorted(different),
    }


if __name__ == "__main__":
    main()
