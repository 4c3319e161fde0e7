"""What the driver hears of a training loop, and how long it waits for the first word."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from rayward.pipelines.training.ray_train import messages


def test_only_the_first_word_has_a_deadline(local_ray: Any) -> None:
    """DPO's pass of the reference over all rows comes before its first step: it may take hours."""
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})
    assert queue.empty(), "its actor is up now"

    def work() -> None:
        queue.put([{"doing": "log-probs of the reference"}])
        time.sleep(3)
        queue.put([{"step": 1}, {"step": 2}])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert [*messages(queue, thread.is_alive, 2.0, "dpo")] == [
            {"doing": "log-probs of the reference"},
            {"step": 1},
            {"step": 2},
        ]
        with pytest.raises(
            TimeoutError,
            match="dpo: the workers have not loaded the model within 1 s; if the cluster",
        ):
            next(messages(queue, lambda: True, 1.0, "dpo"))
    finally:
        thread.join()
        queue.shutdown()
