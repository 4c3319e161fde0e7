"""`rayward reward-serve MODEL`: a reward model on Ray Serve, which answers POST /score."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = commands.add_parser("reward-serve", help="serve a reward model: POST /score")
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of the reward model")
    parser.add_argument(
        "--host", help="address to listen on (default 127.0.0.1; on several hosts the head's)"
    )
    parser.add_argument("--port", type=int, default=0, help="port (default: a free one)")
    parser.add_argument("--replicas", type=int, default=1, help="processes that score (default 1)")
    parser.add_argument(
        "--template", default="tokenizer", help="chat template (default: the model's own)"
    )
    parser.add_argument(
        "--context", type=int, default=2048, metavar="N", help="longest conversation (default 2048)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of a replica (default 0)")
    parser.add_argument(
        "--threads", type=int, default=2, help="compute threads of a replica on the CPU (default 2)"
    )
    parser.add_argument(
        "--max-conversations", type=int, default=256, metavar="N", help="in a request (default 256)"
    )
    parser.add_argument(
        "--deadline", type=float, default=60.0, metavar="S", help="for a request (default 60)"
    )
    parser.add_argument(
        "--max-batch", type=int, default=64, metavar="N", help="conversations at once (default 64)"
    )
    parser.add_argument(
        "--batch-wait", type=float, default=0.005, metavar="S", help="for a batch (default 0.005)"
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="until it is up (default 600)",
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.actors.scoring.score_service import APP
    from rayward.cluster.serve.deploy import stop, stop_after_error
    from rayward.configs.sections.machines import Cluster
    from rayward.data.model_files.hub_models import fetched

    options.model = fetched(options.model)
    prepare(options)
    try:
        with suppress(KeyboardInterrupt):
            url = start(options)
            print(f"scoring with {options.model} at {url}/score\nCtrl-C stops it", flush=True)
            while True:
                time.sleep(3600)
        print("stopping")
    except BaseException:  # also where it did not come up in time: Serve would go on to start it
        stop_after_error(Cluster(), APP)
        raise
    stop(Cluster(), APP)
    return 0


def prepare(options: argparse.Namespace) -> None:
    """Tell here, not in a replica, what is wrong with the folder, and join Ray.

    ValueError: no reward model with such a template, or a model is served already.
    """
    from ray import serve

    from rayward.actors.models.load import load_scalar
    from rayward.actors.scoring.score_service import APP
    from rayward.cluster.connect import connect
    from rayward.configs.sections.machines import Cluster
    from rayward.data.templates.template import find, ids_and_habit
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.rows.renderer import check_vocabulary

    # Loaded for its checks alone; the replicas load it again.
    load_scalar(str(Path(options.model).resolve()), options.dtype)
    tokenizer = load_tokenizer(options.model)
    ids_and_habit(find(options.template), tokenizer)
    check_vocabulary(tokenizer, options.model)
    connect(Cluster())
    if APP in serve.status().applications:
        raise ValueError(
            f"this cluster serves a reward model already (Serve application {APP}); stop that one "
            "first"
        )


def start(options: argparse.Namespace) -> str:
    """Bring the service up; its URL. TimeoutError where that takes longer than --start-timeout."""
    from rayward.actors.scoring.score_service import APP, Limits, application
    from rayward.cluster.serve.deploy import publish_app

    folder = str(Path(options.model).resolve())
    limits = Limits(
        template=options.template,
        context_tokens=options.context,
        dtype=options.dtype,
        threads=options.threads,
        gpus=options.gpus,
        max_conversations=options.max_conversations,
        deadline_s=options.deadline,
        max_batch=options.max_batch,
        batch_wait_s=options.batch_wait,
    )
    app = application(folder, limits, options.replicas)
    return publish_app(
        lambda: app,
        APP,
        options.host,
        options.port,
        options.start_timeout,
        ("--host", "--start-timeout"),
    )
