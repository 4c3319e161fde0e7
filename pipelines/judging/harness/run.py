"""lm-eval's process: what it gets of `judge tasks`, and how it is watched."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayward.data.model_files.hub_models import trusted
from rayward.pipelines.judging.harness.definitions import TASKS
from rayward.pipelines.judging.harness.server import Asked, server


def measure(options: argparse.Namespace, model: Asked, parts: list[dict[str, Any]]) -> None:
    """Have lm-eval measure the parts, in a process of its own, and tell which are done."""
    likelihoods = any(not TASKS[part["task"]].max_new_tokens for part in parts)
    for part in parts:
        for path in (part["out"], part["cache"]):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    log = options.out / "lm_eval.log"
    if model.context_tokens is not None:  # before a server starts
        _check_room(parts, model.context_tokens)
    with server(options, model, likelihoods) as (url, context):
        _check_room(parts, context)
        work = {
            "parent": os.getpid(),
            "offline": options.data is not None,
            "limit": options.limit,
            "parts": parts,
            "server": {
                "url": f"{url}/completions",
                "model": model.name,
                "tokenizer": model.tokenizer,
                "chat_template": model.chat_template,
                "context_tokens": context,
                "concurrency": options.concurrency,
                "tries": options.retries + 1,
                "timeout_s": options.timeout,
                "trust_remote_code": trusted(),
            },
        }
        print(f"lm-eval asks {url}; what it says itself: {log}", flush=True)
        with tempfile.TemporaryDirectory() as scratch, log.open("a", encoding="utf-8") as errors:
            _lm_eval(work, Path(scratch), _environment(options, scratch), errors)


def drop_cache(part: Mapping[str, Any]) -> None:
    """Remove the replies of a part that is done: all of them are among its items."""
    for path in Path(part["cache"]).parent.glob(Path(part["cache"]).name + "_*"):
        path.unlink()


def _check_room(parts: list[dict[str, Any]], context: int) -> None:
    """ValueError: a context of so many tokens holds no more than the answers."""
    for part in parts:
        answer = TASKS[part["task"]].max_new_tokens
        if answer >= context - 1:
            raise ValueError(
                f"{part['task']}: its answers take up to {answer} tokens, and a context of "
                f"{context} leaves none for its prompts; leave it out of --tasks"
            )


def _environment(options: argparse.Namespace, scratch: str) -> dict[str, str]:
    """Of lm-eval's process: the endpoint's key, and with --data no network."""
    environment = dict(os.environ)
    environment["OPENAI_API_KEY"] = os.environ.get(options.model_key) or "none"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    here = "127.0.0.1,localhost"
    environment["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), here)))
    if options.data is not None:
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": scratch,
        }
        own = str(options.data.resolve() / "nltk_data")
        environment["NLTK_DATA"] = os.pathsep.join(filter(None, (own, os.environ.get("NLTK_DATA"))))
    return environment


def _lm_eval(
    work: Mapping[str, Any], scratch: Path, environment: Mapping[str, str], log: Any
) -> None:
    """Run the process, and print what it has done. RuntimeError: it ended before all was done."""
    path = scratch / "work.json"
    path.write_text(json.dumps(work), encoding="utf-8")
    command = [sys.executable, "-m", "rayward.pipelines.judging.harness.process", str(path)]
    told = 0
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"done"'):
                    said = json.loads(line)
                    told += 1
                    fault = f"FAILED: {said['error']}" if said["error"] else "done"
                    print(f"  {said['done']}: {fault}", flush=True)
        finally:
            process.terminate()
    if told < len(work["parts"]):
        raise RuntimeError(
            f"lm-eval ended with status {process.returncode} before all was measured; why: "
            f"{log.name}. What is done is kept; run the same command again to go on"
        )
