"""A vLLM engine that answers prompts: seeds per request, log-probs of what was sampled, versioned
weights.

A rollout is a function of (weights, prompt, seed): how many engines there are, how requests are
batched and in which order they come changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayward.actors.pulse import tick
from rayward.actors.spans import Timed
from rayward.cluster.interfaces import use_own_interface
from rayward.configs.schema import Config
from rayward.data.model_files.hub_models import trusted
from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts

if TYPE_CHECKING:
    from vllm import CompletionOutput


class RolloutEngine(Timed):
    """One vLLM engine; with more than one GPU it splits the model over them."""

    def __init__(self, folder: str, config: Config, backend: str, load_weights: bool, rank: int):
        """`backend` of the weight transfer; `load_weights`: read the folder's weights, or start
        with random ones until a transfer brings them. ValueError where the backend or the build of
        vLLM does not fit the GPUs of the role.
        """
        super().__init__()
        role = config.resources.rollout
        on_gpu = role.gpus > 0
        # Before vLLM is imported, and so not at the top of the file.
        _set_environment(config, rank)
        from vllm import LLM
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from rayward.actors.rollout.object_store import register

        register()  # before the engine is made, which looks its backend up
        if not on_gpu and current_platform.is_cuda():
            raise ValueError(
                "resources.rollout.gpus is 0, and this vLLM is built for GPUs: give its engines "
                "some"
            )
        if backend == "object_store" and role.gpus > 1:
            raise ValueError(
                "rollout.weight_transfer object_store reaches an engine of one process; with "
                f"resources.rollout.gpus {role.gpus} use nccl"
            )
        self.llm = LLM(
            model=folder,
            trust_remote_code=trusted(),
            skip_tokenizer_init=True,  # prompts and responses are token ids
            dtype=config.model.dtype,
            seed=0,  # of what has no seed of its own; every request has one
            max_model_len=config.model.context_tokens,
            max_num_seqs=config.rollout.max_sequences,
            # After temperature, as the trainer computes them. Raw ones would be those of
            # temperature 1.
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            load_format="auto" if load_weights else "dummy",
            weight_transfer_config=WeightTransferConfig(backend=backend),
            worker_extension_cls="rayward.actors.rollout.digest.DigestWorker",
            **(_gpu_options(config) if on_gpu else _cpu_options(config)),
        )
        if not on_gpu:
            self.llm.collective_rpc("draw_once")
        self.version = 0

    def generate(
        self,
        prompts: Ragged,
        prompt_index: np.ndarray,
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        parts: Sequence[int],
        span_name: str = "generate",
    ) -> Iterator[tuple[int, Rollouts | float]]:
        """One response to every row of `prompts`, sampled with the row's seed at top-p 1.

        `parts` numbers the part that each row belongs to; (number, responses in the order of their
        rows) come as soon as a part has all its responses, and (-1, the seconds that all took) at
        the end.
        """
        with self.span(span_name):
            rows_of: dict[int, list[int]] = {}
            for row, part in enumerate(parts):
                rows_of.setdefault(part, []).append(row)
            missing = {part: len(rows) for part, rows in rows_of.items()}
            row_of = self._enqueue(prompts, seeds, temperature, max_new_tokens, stop_token_ids)
            outputs: dict[int, CompletionOutput] = {}
            try:
                while self.llm.llm_engine.has_unfinished_requests():
                    tick()
                    # `enqueue` asks for final outputs only: each request comes once, complete.
                    for request in self.llm.llm_engine.step():
                        row = row_of.pop(request.request_id)
                        outputs[row] = request.outputs[0]
                        part = parts[row]
                        missing[part] -= 1
                        if not missing[part]:
                            rows = rows_of[part]
                            yield (
                                part,
                                self._rollouts(
                                    prompts.take(rows),
                                    prompt_index[rows],
                                    [outputs.pop(row) for row in rows],
                                    stop_token_ids,
                                ),
                            )
            finally:
                # Of a call that failed, or that nobody reads to its end: the next one must not meet
                # their outputs, whose ids it does not know.
                if row_of:
                    self.llm.llm_engine.abort_request(list(row_of))
        # The span that has just ended, of which the driver takes the slowest engine's.
        _, start, end = self.spans[-1]
        yield -1, end - start

    def _enqueue(
        self,
        prompts: Ragged,
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> dict[str, int]:
        """Hand all requests to the engine; the row of each, by the id that outputs carry."""
        from vllm import SamplingParams

        requests = [{"prompt_token_ids": prompts[row].tolist()} for row in range(len(prompts))]
        sampling = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                # vLLM makes a generator of it for this request alone, so the noise does not depend
                # on the other rows of the batch.
                seed=int(seed),
                logprobs=0,  # of the sampled token, and of no others
                flat_logprobs=True,  # one list instead of a dict a token
                detokenize=False,
                stop_token_ids=list(stop_ids),
            )
            for seed in seeds
        ]
        ids = self.llm.enqueue(requests, sampling, use_tqdm=False)
        # vLLM adds a random ending of its own, which outputs do not have.
        return {name.split("-")[0]: row for row, name in enumerate(ids)}

    def _rollouts(
        self,
        prompts: Ragged,
        prompt_index: np.ndarray,
        outputs: Sequence[CompletionOutput],
        stop_ids: Sequence[int],
    ) -> Rollouts:
        logprobs = [np.asarray(output.logprobs.logprobs, dtype=np.float32) for output in outputs]
        # vLLM also stops at the end tokens of the folder's generation config: a response that ends
        # with one of those and not with the template's own has not ended as conversations do.
        finished = [output.token_ids[-1] in stop_ids for output in outputs]
        return Rollouts(
            prompts=prompts,
            responses=Ragged.of([output.token_ids for output in outputs]),
            prompt_index=prompt_index,
            finished=np.array(finished, dtype=bool),
            rollout_logprobs=np.concatenate(logprobs),
            # One for all tokens: an actor does one call at a time, so no transfer comes between.
            weight_version=self.version,
        )

    def probe(self, ids: list[int]) -> list[float]:
        """Log-probs of all but the first of the ids, at temperature 1."""
        from vllm import SamplingParams

        # vLLM gives those of prompts without temperature, and reads no cached prefix for them. It
        # has to sample a token, which is not looked at.
        sampling = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        (output,) = self.llm.generate({"prompt_token_ids": ids}, sampling, use_tqdm=False)
        assert output.prompt_logprobs is not None
        # One entry a token, by token id; the first, which nothing comes before, is None.
        pairs = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        return [float(entry[token].logprob) for entry, token in pairs if entry is not None]

    def sleep(self) -> None:
        """Leave the GPU's memory to others: weights and KV cache go.

        The next weights come by transfer.
        """
        self.llm.sleep(level=2)  # level 1 would keep the old weights on the host

    def wake(self, tag: str) -> None:
        """Take back the memory of the `weights` or of the `kv_cache`."""
        self.llm.wake_up(tags=[tag])

    # What the policy calls through rayward.actors.rollout.weights.EngineClient, in this order.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.update_started_at = time.time()
        # First the digest: the layerwise reload then finds the loader that is watched.
        self.llm.collective_rpc("begin_weight_digest")
        self.llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self) -> None:
        """End of the transfer; cached prefixes belong to the old weights and go with them."""
        self.llm.finish_weight_update()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")

    def commit_weights(self, version: int) -> str:
        """Everything sampled from now on carries `version`; the digest of what was loaded."""
        self.llm.update_weight_version(str(version))
        self.version = version
        self.spans.append(("receive_weights", self.update_started_at, time.time()))
        # Each process of an engine is sent all weights, so the first one's digest is everyone's.
        return str(self.llm.collective_rpc("weight_digest")[0])


def _set_environment(config: Config, rank: int) -> None:
    """What vLLM reads from the environment."""
    role = config.resources.rollout
    use_own_interface()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # The engine core runs in this process: object refs of a transfer reach it as they are, which
    # vLLM's messages between processes could not carry.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if role.gpus > 0:
        if config.rollout.batch_invariant:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        return
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.rollout.kv_cache_gib)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = _cores(rank, role.compute_threads)
    # Splitting a row's keys over threads makes the last bits of its log-probs depend on the rest of
    # the batch.
    os.environ["VLLM_CPU_ATTN_SPLIT_KV"] = "0"


def _gpu_options(config: Config) -> dict[str, Any]:
    role, rollout = config.resources.rollout, config.rollout
    return {
        "gpu_memory_utilization": rollout.gpu_memory_fraction,
        "enable_sleep_mode": config.rl.mode == "colocate",
        "tensor_parallel_size": max(1, int(role.gpus)),
        "distributed_executor_backend": "uni" if role.gpus <= 1 else "mp",
        # Logits of bf16 models in fp32, as the trainer makes them; that product has no
        # batch-invariant kernel.
        "hf_overrides": {} if rollout.batch_invariant else {"head_dtype": "float32"},
    }


def _cpu_options(config: Config) -> dict[str, Any]:
    return {
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        # A seeded request whose prompt is prefilled in chunks fails on the CPU (its generator has
        # no offset), so prompts are prefilled whole there, and a step has room for the longest.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, config.model.context_tokens),
    }


def _cores(rank: int, threads: int) -> str:
    """Cores for the engine's threads, taken in turn by engines on the same machine."""
    allowed = sorted(os.sched_getaffinity(0))
    first = rank * threads
    # A core at most once: vLLM starts one thread for each that is named.
    count = min(threads, len(allowed))
    return ",".join(str(allowed[(first + i) % len(allowed)]) for i in range(count))
