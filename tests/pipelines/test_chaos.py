"""Faults in the midst of real runs: nothing lost, nothing doubled, the same bits at the end."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTHING = {"lost": 0, "doubled": 0, "different": []}


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks" / "chaos.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    return module


def beside(road: Path, work: Path) -> Path:
    """A folder for faults, whose undisturbed runs begin with those of the road."""
    (work / "base").symlink_to(road)
    (work / "whole").mkdir()
    (work / "whole" / "plain").symlink_to(road)
    return work


@pytest.mark.timeout(1500)
def test_six_faults_and_a_killed_driver_change_nothing(
    chaos: ModuleType, road: Path, tmp_path: Path
) -> None:
    made = chaos.Chaos(beside(road, tmp_path), seed=1, per_run=7)
    drawn = made._fault
    # Six by seed, which come early enough to happen, and the driver's death for certain.
    certain = {"role": "driver", "rank": None, "phase": "log", "kind": "kill", "after_s": 0.0}

    def fault(case: object, random_: random.Random, index: int) -> dict[str, Any]:
        last = {**certain, "id": 6, "nth": 1}
        return last if index == 6 else {**drawn(case, random_, index), "nth": 1 + index % 2}

    made._fault = fault
    made.one("plain")
    (row,) = made.rows
    assert row["status"] == 0, row["stopped"]
    assert {name: row[name] for name in NOTHING} == NOTHING
    happened = [(one["role"], one["kind"]) for one in row["faults"]]
    assert ("driver", "kill") in happened and len(happened) >= 5, happened
    assert row["tries"] >= 2 and len(chaos.rows_of(tmp_path / "run", chaos.CASES["plain"])) == 2
    figures = chaos.figures(made.rows)
    assert figures["injected"] == figures["survived"] == len(row["faults"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["sft", "reward", "sample", "dpo", "ppo", "rloo", "evaluate"])
def test_a_driver_killed_at_ten_moments_loses_nothing(
    chaos: ModuleType, road: Path, tmp_path: Path, name: str
) -> None:
    made = chaos.Chaos(beside(road, tmp_path), seed=1, per_run=0)
    assert made.killed(name, 10) == NOTHING
