"""A process ends with Ray's head, and says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import os, signal, time
import ray
from ray._private import worker
from rayward.cluster import head
from rayward.cluster.connect import connect
from rayward.configs.sections.machines import Cluster

head.EVERY_S, head.WAITS_S = 0.5, head.SOONER_S + 5.0
"""
JOIN = "connect(Cluster())"
HARMED = """
@ray.remote(num_cpus=0)
def long():
    time.sleep(60)

call = long.remote()
(server,) = worker._global_node.all_processes["gcs_server"]
os.kill(server.process.pid, signal.{number})
ray.get(call)
"""
LEFT = """
head.EVERY_S = 1.0  # so that it looks once more when there is another Ray
time.sleep(1.5)
ray.shutdown()
connect(Cluster())
print("left")
time.sleep(6)
print("another lives")
"""
LATE = """
import threading, psutil

def stop_the_first():
    while True:
        for child in psutil.Process().children():
            if "raylet" in child.name():
                child.suspend()
                return
        time.sleep(0.05)

threading.Thread(target=stop_the_first, daemon=True).start()
connect(Cluster())
print(ray.get(ray.put("up")))
"""


def driver(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def ends_in_a_sentence(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stderr[-2000:]
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith("rayward: Ray's head at ") and "run the same command again" in told


def test_without_its_head_a_process_ends_in_a_sentence() -> None:
    ends_in_a_sentence(driver(BEGIN + JOIN + HARMED.format(number="SIGKILL")))


def test_a_head_that_was_left_is_not_missed_and_one_that_hangs_is() -> None:
    done = driver(BEGIN + JOIN + LEFT + HARMED.format(number="SIGSTOP"))
    assert done.stdout.splitlines() == ["left", "another lives"], done.stderr[-2000:]
    ends_in_a_sentence(done)


@pytest.mark.slow
def test_a_ray_that_does_not_come_up_is_started_again() -> None:
    done = driver(BEGIN + LATE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "once more" in done.stdout and done.stdout.splitlines()[-1] == "up"
