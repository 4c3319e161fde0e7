"""Faults in the midst of real runs: nothing lost, nothing doubled, the same bits at the end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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


def link_base(road: Path, work: Path) -> Path:
    (work / "base").symlink_to(road)
    return work


@pytest.mark.timeout(1500)
def test_six_faults_and_a_killed_driver_change_nothing(
    chaos: ModuleType, road: Path, tmp_path: Path
) -> None:
    made = chaos.Chaos(link_base(road, tmp_path), seed=3, per_run=6)
    case = chaos.CASES["ppo"]
    # By seed, but the last two are the driver's death, and its end by a signal.
    drawn = made._fault
    driver = {"role": "driver", "rank": None, "after_s": 0.0}
    certain = {
        4: {**driver, "id": 4, "phase": "log", "nth": 2, "kind": "kill"},
        5: {**driver, "id": 5, "phase": "record", "nth": 1, "kind": "term"},
    }
    made._fault = lambda case, random_, index: certain.get(index) or drawn(case, random_, index)
    made.one("ppo")
    (row,) = made.rows
    assert row["status"] == 0, row["stopped"]
    assert {name: row[name] for name in NOTHING} == NOTHING
    assert len(row["faults"]) >= 3 and row["tries"] >= 2
    assert len(chaos.rows_of(tmp_path / "run", case)) == 4
    figures = made.figures()
    assert figures["injected"] == figures["survived"] == len(row["faults"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["sft", "reward", "sample", "dpo", "ppo", "rloo", "evaluate"])
def test_a_driver_killed_at_ten_moments_loses_nothing(
    chaos: ModuleType, road: Path, tmp_path: Path, name: str
) -> None:
    made = chaos.Chaos(link_base(road, tmp_path), seed=1, per_run=0)
    assert made.killed(name, 10) == NOTHING
