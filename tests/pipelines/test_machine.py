"""A run keeps the threads of the machine on which it began."""

from __future__ import annotations

import json
import os

from rayward.pipelines.run.files import write_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.machine import on_machine, own_cores, planned


def test_the_numbers_of_the_first_machine_hold(tiny_config, tmp_path):
    run = Run(tmp_path / "run", tiny_config())
    cores = len(os.sched_getaffinity(0))
    assert on_machine(run, "sft").config.resources.train.threads == own_cores() <= cores
    kept = json.loads((run.folder / "machine.json").read_text())
    assert kept["threads"] == {
        "sft": {
            "train": kept["cores"],
            "rollout": kept["cores"],
            "reference": kept["cores"],
            "reward": kept["cores"],
        }
    }
    write_json(run.folder / "machine.json", {"cores": 64, "threads": {"sft": {"train": 3}}})
    assert on_machine(run, "sft").config.resources.train.threads == 3, "as the stage was begun"
    assert on_machine(run, "evaluate").config.resources.reference.threads == 64, (
        "as the run was begun"
    )
    assert planned(run)["sft"]["train"] == 3


def test_a_plan_writes_nothing(tiny_config, tmp_path):
    run = Run(tmp_path / "run", tiny_config())
    assert planned(run)["rl"]["rollout"] == own_cores()
    assert not run.folder.exists()


def test_a_setting_is_stronger_than_what_is_kept(tiny_config, tmp_path):
    run = Run(tmp_path, tiny_config(resources={"train": {"threads": 2}}))
    write_json(tmp_path / "machine.json", {"cores": 1, "threads": {"sft": {"train": 1}}})
    assert on_machine(run, "sft").config.resources.train.threads == 2


def test_a_container_with_a_share_of_the_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    everything = len(os.sched_getaffinity(0))
    for text, cores in (
        ("max 100000", everything),
        ("150000 100000", 1),
        ("9900000 100000", everything),
    ):
        quota.write_text(text + "\n")
        assert own_cores(quota) == cores
    quota.write_text("50000 100000\n")
    assert own_cores(quota) == 1
    assert own_cores(tmp_path / "none") == everything
