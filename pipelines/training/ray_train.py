"""Running a training loop on Ray Train: the driver's side, with its bar and metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty
from typing import TYPE_CHECKING, Any

import ray
from ray.util.queue import Queue

from rayward.actors.pulse import Unanswered
from rayward.actors.training.job import Job
from rayward.cluster.placement import train_hosts
from rayward.configs.sections.training import Preferences, Supervised
from rayward.data.model_files.hub_models import local
from rayward.pipelines.run.metrics import Metrics
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.training.going_on import GoingOn, without_step
from rayward.pipelines.training.trainer import trainer
from rayward.pipelines.training.workers import Workers

if TYPE_CHECKING:
    from rayward.actors.training.rankings import RankedRows
    from rayward.actors.training.supervised import WeightedRows

RANKED_SHOWN = ("loss", "pair_accuracy", "heldout_accuracy")
"""Metrics beside the bar where rankings are learned from."""
ENDING_S = 60.0
"""Longest wait for Ray Train to notice that its workers were ended."""


def train(
    stage: Stage,
    title: str,
    loop: Callable[[Job], None],
    job: Job,
    steps: int,
    show: tuple[str, ...],
    folder_name: str = "",
) -> dict[str, Any]:
    """Run `loop` in `job.role.workers` Ray Train workers; metrics go to the stage's folder.

    Returns what the workers reported beside the steps: as "last" the metrics of the step whose
    state is kept, lists of all else. Raises what a worker raised.
    """
    from ray.train import RunConfig, ScalingConfig

    from rayward.actors.training.torch_backend import InterfaceConfig

    hosts = train_hosts(job.role, stage.run.config.cluster)
    going_on = GoingOn(stage, folder_name, title, steps, job)
    job = replace(job, checkpoints=going_on.place)
    # Without a CPU of its own: `train_hosts` has counted those of the workers only.
    queue = Queue(actor_options={"num_cpus": 0})
    role, cluster = job.role, stage.run.config.cluster
    workers = Workers(title, role.workers, cluster.call_timeout_s)
    run = trainer(
        loop,
        train_loop_config=replace(job, queue=queue, signs=workers.signs),
        torch_config=InterfaceConfig(),
        scaling_config=ScalingConfig(
            num_workers=role.workers,
            use_gpu=role.gpus > 0,
            resources_per_worker={"CPU": role.cpus, **({"GPU": role.gpus} if role.gpus else {})},
            label_selector=hosts,
        ),
        # Absolute: workers have working directories of their own. Ray Train would go on by itself
        # from what an earlier try left there, so each has a folder of its own.
        run_config=RunConfig(
            storage_path=str((stage.folder / "ray").resolve()),
            name=f"{title}-{going_on.step}" if going_on.step else title,
        ),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            run.fit()
        # An exception of a thread would be printed and lost. It is raised below, where the stage
        # fails of it.
        except BaseException as error:
            failure.append(error)

    # `fit` blocks until the end, and metrics are read from the queue meanwhile. A daemon, so that
    # Ctrl-C and a timeout below end the process though training goes on.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    reports: dict[str, Any] = {}
    rows = going_on.rows
    step_metrics = {row["step"]: without_step(row) for row in rows}
    if rows:
        reports["last"] = step_metrics[rows[-1]["step"]]
    with (
        going_on.asked(),
        ended(workers, thread),
        Metrics(stage.folder / folder_name, title, steps, "step", rows) as metrics,
    ):
        for message in messages(queue, thread.is_alive, cluster.start_timeout_s, title, workers):
            if "doing" in message:
                metrics.doing(message["doing"])
            elif "checkpoint" in message:
                metrics.doing(checkpoint_text(message["checkpoint"]))
            elif "step" in message:
                step = message.pop("step")
                metrics.log(step, message, show)
                reports["last"] = step_metrics[step] = message
            else:
                # Lists, since ranks may each send a part under one name.
                for name, value in message.items():
                    reports.setdefault(name, []).append(value)
    queue.shutdown()
    if failure:
        if lost := workers.lost(failure[0]):
            raise lost from failure[0]
        raise failure[0]
    if "kept" not in reports:  # what it tells after the last step
        raise KeyboardInterrupt
    if job.keep == "best":
        # There is none where the metrics of a checkpoint were missing.
        reports["last"] = step_metrics.get(reports["kept"][0]["kept_step"], reports["last"])
    return reports


def checkpoint_text(told: Mapping[str, Any]) -> str:
    """What the workers tell of a checkpoint, in words."""
    if "failed" in told:
        return f"no checkpoint of {told['step']}, the one before stays: {told['failed']}"
    waited = f"training waited {told['waited']:.1f} s"
    return f"checkpoint of {told['step']}: {told['seconds']:.1f} s, {waited}"


@contextmanager
def ended(workers: Workers, thread: threading.Thread) -> Iterator[None]:
    """Leave no process behind where they hang: what they hold is needed to try again."""
    try:
        yield
    except Unanswered:
        workers.end()
        thread.join(ENDING_S)
        raise


def messages(
    queue: Queue, running: Callable[[], bool], limit: float, title: str, workers: Workers
) -> Iterator[dict[str, Any]]:
    """What the workers put into a queue of lists, until they are not `running` and it is empty.

    TimeoutError where they have not loaded the model within `limit` seconds, which their first word
    says; after that Unanswered where they hang. What works may take as long as it takes: before
    the first step that is the reference's log-probs of all rows, for DPO.
    """
    started, at = False, time.monotonic()
    # In this order: once they do not run, nothing is added, so an empty queue stays empty.
    while running() or not queue.empty():
        try:
            # Short, to see soon that they have ended, or failed, without a word.
            batch = queue.get(timeout=0.5)
        except Empty:
            waited = time.monotonic() - at
            if not started and waited > limit:
                raise TimeoutError(
                    f"{title}: the workers have not loaded the model within {limit:.0f} s; if the "
                    "cluster is busy or the model loads slowly, raise cluster.start_timeout_s"
                ) from None
            if started and waited > workers.limit_s:
                workers.check()
                at = time.monotonic()
            continue
        for message in batch:
            if handle := message.get("worker"):
                workers.handles.append(handle)
                continue
            started = True
            yield message
        at = time.monotonic() if started else at


def job(
    stage: Stage,
    model: str,
    train: WeightedRows | RankedRows,
    heldout: WeightedRows | RankedRows,
    settings: Supervised | Preferences,
    folder: str = "model",
    **more: Any,
) -> Job:
    """What the workers need to train `model` (a folder or hub name) into the stage's `folder`.

    `more`: further fields of Job, or others in place of those that are filled in here.
    """
    config = stage.run.config
    if isinstance(settings, Supervised):
        rows_per_step = settings.samples_per_step
    else:
        rows_per_step = settings.rankings_per_step
    fields = {
        "model": local(model),
        "tokenizer": str((stage.run.folder / "prepare" / "tokenizer").resolve()),
        "output": str((stage.folder / folder).resolve()),
        # Once in the store, not pickled into each worker's arguments.
        "train": ray.put(train),
        "heldout": ray.put(heldout),
        "epochs": settings.epochs,
        "rows_per_step": rows_per_step,
        "optimizer": settings.optimizer,
        "validate_every": settings.validate_every,
        "keep": settings.keep,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "role": config.resources.train,
        "queue": None,  # `train` fills it in
        "preferences": settings if isinstance(settings, Preferences) else None,
    }
    return Job(**fields | more)
