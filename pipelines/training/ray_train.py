"""Running a training loop on Ray Train: the driver's side, with a bar, metrics, and the workers'
last words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty
from typing import Any

import ray

from rayward.actors.training.job import Job
from rayward.cluster.connect import check_fits
from rayward.configs.sections.training import Preferences, Supervised
from rayward.data.model_files.hub_models import local
from rayward.pipelines.run.stage import Metrics, Stage

RANKED_SHOWN = ("loss", "pair_accuracy", "heldout_accuracy")
"""Metrics beside the bar where rankings are learned from."""


def train(
    stage: Stage,
    title: str,
    loop: Callable[[Job], None],
    job: Job,
    steps: int,
    show: tuple[str, ...],
    folder_name: str = "",
) -> dict[str, Any]:
    """Run `loop` in `job.role.workers` Ray Train workers; metrics go to the stage's folder as they
    come.

    Returns what the workers reported beside the steps: as "last" the metrics of the step whose
    state is kept, lists of all else. Raises what a worker raised.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    check_fits({"train": job.role})
    queue = Queue(actor_options={"num_cpus": 0})
    role = job.role
    trainer = TorchTrainer(
        loop,
        train_loop_config=replace(job, queue=queue),
        scaling_config=ScalingConfig(
            num_workers=role.workers,
            use_gpu=role.gpus > 0,
            resources_per_worker={"CPU": role.cpus, **({"GPU": role.gpus} if role.gpus else {})},
        ),
        run_config=RunConfig(storage_path=str((stage.folder / "ray").resolve()), name=title),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    said: dict[str, Any] = {}
    steps_said: dict[int, Any] = {}
    limit = stage.run.config.cluster.start_timeout_s
    with Metrics(stage.folder / folder_name, title, steps, "step") as metrics:
        for message in messages(queue, thread.is_alive, limit, title):
            if "doing" in message:
                metrics.doing(message["doing"])
            elif "step" in message:
                step = message.pop("step")
                metrics.log(step, message, show)
                said["last"], steps_said[step] = message, message
            else:
                for name, value in message.items():
                    said.setdefault(name, []).append(value)
    queue.shutdown()
    if failure:
        raise failure[0]
    if job.keep == "best":
        said["last"] = steps_said[said["kept"][0]["kept_step"]]
    return said


def messages(
    queue: Any, running: Callable[[], bool], limit: float, title: str
) -> Iterator[dict[str, Any]]:
    """What the workers put into a queue of lists, until they are not `running` and it is empty.

    TimeoutError where nothing came within `limit` seconds. The first word is that the model is
    loaded; what comes before the first step then (the reference's log-probs of all rows, for DPO)
    may take as long as it takes.
    """
    deadline: float | None = time.monotonic() + limit
    while running() or not queue.empty():
        try:
            found = queue.get(timeout=0.5)
        except Empty:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(
                    f"{title}: the workers have not loaded the model within {limit:.0f} s; if the "
                    "cluster is busy or the model loads slowly, raise cluster.start_timeout_s"
                ) from None
            continue
        deadline = None
        yield from found


def job(
    stage: Stage,
    model: str,
    train: Any,
    heldout: Any,
    settings: Supervised | Preferences,
    folder: str = "model",
    **more: Any,
) -> Job:
    """What the workers need to train `model` (a folder or hub name) into the stage's `folder`; rows
    go to the store.
    """
    config = stage.run.config
    supervised = isinstance(settings, Supervised)
    fields = {
        "model": local(model),
        "tokenizer": str((stage.run.folder / "prepare" / "tokenizer").resolve()),
        "output": str((stage.folder / folder).resolve()),
        "train": ray.put(train),
        "heldout": ray.put(heldout),
        "epochs": settings.epochs,
        "rows_per_step": settings.samples_per_step if supervised else settings.rankings_per_step,
        "optimizer": settings.optimizer,
        "validate_every": settings.validate_every,
        "keep": settings.keep,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "role": config.resources.train,
        "queue": None,
        "preferences": None if supervised else settings,
    }
    return Job(**fields | more)
