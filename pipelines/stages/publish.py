"""Stage publish: the chosen model behind an OpenAI-compatible endpoint, asked by its client."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayward.cluster.connect import connect
from rayward.cluster.placement import check_fits
from rayward.configs.plan import roles
from rayward.configs.stages import MODELS, START, baseline, has
from rayward.configs.stages import models as configured
from rayward.data.records import Turn, parts_of
from rayward.data.templates.saved_tokenizer import mend
from rayward.data.templates.template import find
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics, table
from rayward.pipelines.run.stage import begin

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.py",
)
"""What a folder holds of a model beside its tokenizer."""


def publish(run: Run, keep: bool = False) -> dict[str, Any] | None:
    """Do the stage; None if it was done before and the endpoint need not stay.

    With `keep` the endpoint is left up: `serve_until_interrupted` waits and takes it down.
    """
    config = run.config
    name = choose(run)
    judged = ["evaluate"] if config.publish.model == "best" and has(config, "evaluate") else []
    inputs = ("prepare", *judged, *([MODELS[name]] if name in MODELS else []))
    # The setting may say "best", so the choice itself decides too: after another evaluation it may
    # be another model.
    chosen = {"chosen": name}
    if name in config.evaluate.models:
        chosen["folder"] = config.evaluate.models[name]
    stage = begin(run, "publish", inputs, chosen, follows_inputs=True)
    if stage is None and not keep:
        return None
    connect(config.cluster)
    check_fits(roles(config, "publish"))
    from rayward.cluster.serve import deploy

    started_at = time.perf_counter()
    app = deploy.app_name(config, run.folder)
    # Done before and asked to stay up: what is there is kept as it is.
    folder = stage.folder if stage else run.folder / "publish" / "again"
    try:
        with Metrics(folder, "publish", 2, "step") as progress:
            if name in MODELS:
                model = run.named(name)
            else:
                model = with_tokenizer(run, name, folder / "model")
            if change := mend(find(config.model.template), model):
                print(f"   served otherwise than trained: {change}")
            url = deploy.start(model, config, run.folder)
            metrics: dict[str, Any] = {"model": name, "url": url}
            metrics["start_seconds"] = round(time.perf_counter() - started_at, 1)
            progress.log(0, {"up": 1, "time": {"start_s": metrics["start_seconds"]}}, ("up",))
            metrics |= ask(
                url, config.publish.model_id, question(run), config.publish.start_timeout_s
            )
            progress.log(
                1, {"answered": 1, "completion_tokens": metrics["completion_tokens"]}, ("answered",)
            )
    except BaseException:  # Ctrl-C too: on a joined cluster Serve would go on without this process
        deploy.stop_after_error(config.cluster, app)
        raise
    table("publish", metrics)
    if not keep:
        deploy.stop(config.cluster, app)
    return stage.finish(metrics) if stage else {"metrics": metrics}


def serve_until_interrupted(run: Run, metrics: dict[str, Any]) -> None:
    """Wait for Ctrl-C (or SIGTERM), then take the endpoint down."""
    from rayward.cluster.serve import deploy

    url, app = metrics["url"], deploy.app_name(run.config, run.folder)
    try:
        with suppress(KeyboardInterrupt):
            print(
                f"serving {metrics['model']} at {url}; talk to it with: rayward chat {url}\nCtrl-C "
                "stops it",
                flush=True,
            )
            while True:
                time.sleep(3600)  # Serve answers in processes of its own
        print("stopping")
    except BaseException:
        deploy.stop_after_error(run.config.cluster, app)
        raise
    deploy.stop(run.config.cluster, app)


def choose(run: Run) -> str:
    """The model to serve: the configured one, or the one with the highest win rate.

    Without an evaluation it is the one that the last stage makes.
    """
    config = run.config
    if config.publish.model != "best":
        return config.publish.model
    if not has(config, "evaluate"):
        return [START, *configured(config)][-1]
    win_rates = run.manifest("evaluate")["metrics"]["win_rate"]
    rates = {name: rate["mean"] for name, rate in win_rates.items()}
    # Against itself the baseline wins half. Of equal ones the first stays: max takes that.
    return max(rates | {baseline(config): 0.5}, key=lambda name: rates.get(name, 0.5))


def with_tokenizer(run: Run, name: str, folder: Path) -> str:
    """A folder of links to the files of a model that is given, with the run's tokenizer.

    Its chat template comes along; the model's own folder stays as it is.
    """
    source = Path(run.named(name))
    if not source.is_dir():
        raise StageError(f"publish.model {name}: {source} is no folder")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    # The tokenizer first: a file of the same name written over a link would be written into the
    # model's own folder.
    shutil.copytree(run.folder / "prepare" / "tokenizer", folder, dirs_exist_ok=True)
    for pattern in MODEL_FILES:
        for file in sorted(source.glob(pattern)):
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())
    return str(folder)


def question(run: Run) -> list[dict[str, str]]:
    """A held-out prompt as chat messages; another where the run has none.

    One without tools and calls: an endpoint takes tools only where it is started for them.
    """
    prompts = prepared(run, "evaluation_prompts") or prepared(run, "prompts")
    plain = (prompt.turns for prompt in prompts if not any(parts_of(prompt.turns, prompt.tools)))
    turns = next(plain, (Turn("user", "Hello! What can you do?"),))
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def ask(
    url: str, model_id: str, messages: list[dict[str, str]], timeout_s: float
) -> dict[str, Any]:
    """Check an endpoint as a client: its model list, one answer, and the same answer streamed.

    Raises StageError where the answers are empty, differ, or do not come in time.
    """
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", timeout=timeout_s, max_retries=2)
    models = [model.id for model in client.models.list()]
    if model_id not in models:
        raise StageError(f"{url}/models lists {models}, not {model_id}")
    # Temperature 0, so that the two answers must be the same.
    request: Any = {"model": model_id, "messages": messages, "temperature": 0.0, "max_tokens": 24}
    answer = client.chat.completions.create(**request)
    text = answer.choices[0].message.content or ""
    chunks = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**request, stream=True)
        if chunk.choices
    ]
    if not text.strip() or "".join(chunks) != text:
        raise StageError(f"{url}: the endpoint answered {text!r}, and streamed {''.join(chunks)!r}")
    return {
        "question": messages[-1]["content"],
        "answer": text.strip(),
        "streamed_chunks": len(chunks),
        "finish_reason": answer.choices[0].finish_reason,
        "completion_tokens": answer.usage.completion_tokens,
    }
