"""What Ray Train's controller and the queue pass on is read without an engine, which would take
them seconds.
"""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np

from rayward.actors.training.job import Job
from rayward.configs.sections.machines import Role
from rayward.configs.sections.training import Optimizer, Reward
from rayward.data.ragged import Ragged, Shard


def test_job_and_results_are_read_without_torch() -> None:
    job = Job(
        model="a",
        tokenizer="a",
        output="b",
        train=None,
        heldout=None,
        epochs=1,
        rows_per_step=4,
        dtype="float32",
        seed=0,
        optimizer=Optimizer(),
        role=Role(),
        queue=None,
        preferences=Reward(),
    )
    part = Shard(np.array([1]), Ragged.of([[2.5]], np.float32))
    code = (
        "import pickle, sys\njob, message = pickle.load(sys.stdin.buffer)\n"
        "print(job.rows_per_step, message['heldout_scores'].values[0], {'torch', 'transformers'} "
        "& set(sys.modules))"
    )
    sent = pickle.dumps((job, {"heldout_scores": part}))
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, timeout=120, check=True
    )
    assert done.stdout.decode().strip() == "4 [2.5] set()"
