"""What the driver hears of a training loop, and how long it waits for the first word."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rayward.actors.pulse import Unanswered, tell_of, tick
from rayward.pipelines.run.errors import of_infrastructure
from rayward.pipelines.training.ray_train import messages
from rayward.pipelines.training.workers import Workers


@pytest.fixture
def queue(local_ray: Any) -> Iterator[Any]:
    from ray.util.queue import Queue

    made = Queue(actor_options={"num_cpus": 0})
    assert made.empty(), "its actor is up now"
    yield made
    made.shutdown()


def test_what_works_may_take_long_after_the_first_word(queue: Any) -> None:
    """DPO's pass of the reference over all rows comes before its first step: it may take hours."""
    workers = Workers("dpo", 1, limit_s=2.0)

    def work() -> None:
        tell_of(f"{workers.signs}-0")
        queue.put([{"doing": "log-probs of the reference"}])
        for _ in range(40):
            time.sleep(0.1)
            tick()
        queue.put([{"step": 1}, {"step": 2}])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert [*messages(queue, thread.is_alive, 2.0, "dpo", workers)] == [
            {"doing": "log-probs of the reference"},
            {"step": 1},
            {"step": 2},
        ]
    finally:
        thread.join()


def test_the_first_word_has_a_deadline(queue: Any) -> None:
    workers = Workers("dpo", 1, limit_s=100.0)
    with pytest.raises(
        TimeoutError,
        match="dpo: the workers have not loaded the model within 1 s; if the cluster",
    ):
        next(messages(queue, lambda: True, 1.0, "dpo", workers))


def test_workers_that_hang_after_the_first_word_are_named(queue: Any) -> None:
    workers = Workers("dpo", 2, limit_s=1.0)
    queue.put([{"step": 1}])
    heard = messages(queue, lambda: True, 1.0, "dpo", workers)
    assert next(heard) == {"step": 1}
    with pytest.raises(Unanswered) as caught:
        next(heard)
    said = str(caught.value)
    assert said.startswith(
        "dpo worker 0 has given no sign of life; dpo worker 1 has given no sign of life: no "
        "progress for 1 s; if only slow, raise cluster.call_timeout_s"
    )


def test_a_worker_that_was_killed_is_a_lost_process_and_an_error_of_work_is_none() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    workers = Workers("sft", 2, limit_s=1.0)
    gone = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    closed = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    lost = workers.lost(WorkerGroupError("of rank 1", {0: closed, 1: gone}))
    assert lost is not None and of_infrastructure(lost)
    assert str(lost).startswith("sft worker 1 died without a word: killed, or by the kernel")
    assert "less memory: sft.optimizer.micro_batch_tokens" in str(lost)
    # What a rank raised itself would come again.
    mistake = ValueError("a row without an answer")
    assert workers.lost(WorkerGroupError("of both", {0: mistake, 1: gone})) is None
    assert workers.lost(mistake) is None
