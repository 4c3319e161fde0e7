"""A vLLM engine that answers prompts: seeds per request, log-probs of what was sampled, versioned
weights.

A rollout is a function of (weights, prompt, seed): how many engines there are, how requests are
batched and in which order they come changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rayward.actors.spans import Timed
from rayward.configs.schema import Config
from rayward.data.model_files.hub_models import trusted
from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts


class RolloutEngine(Timed):
    """One vLLM engine; with more than one GPU it splits the model over them."""

    def __init__(self, folder: str, config: Config, backend: str, loads: bool, rank: int):
        """`loads`: read the folder's weights, or start with random ones until a transfer brings
        them.
        """
        super().__init__()
        role = config.resources.rollout
        on_gpu = role.gpus > 0
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if on_gpu and config.rollout.batch_invariant:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        if not on_gpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.rollout.kv_cache_gib)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = _cores(rank, role.compute_threads)
            # Splitting a row's keys over threads makes the last bits of its log-probs depend on the
            # rest of the batch.
            os.environ["VLLM_CPU_ATTN_SPLIT_KV"] = "0"
        from vllm import LLM
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from rayward.actors.rollout.object_store import register

        register()
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
        # A seeded request whose prompt is prefilled in chunks fails on the CPU (its generator has
        # no offset), so prompts are prefilled whole there.
        own = (
            {
                "gpu_memory_utilization": config.rollout.gpu_memory_fraction,
                "enable_sleep_mode": config.rl.mode == "colocate",
                "tensor_parallel_size": max(1, int(role.gpus)),
                "distributed_executor_backend": "uni" if role.gpus <= 1 else "mp",
                # Logits of bf16 models in fp32, as the trainer makes them; that product has no
                # batch-invariant kernel.
                "hf_overrides": {} if config.rollout.batch_invariant else {"head_dtype": "float32"},
            }
            if on_gpu
            else {
                "enforce_eager": True,
                "distributed_executor_backend": "uni",
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(8192, config.model.context_tokens),
            }
        )
        self.llm = LLM(
            model=folder,
            trust_remote_code=trusted(),
            skip_tokenizer_init=True,
            dtype=config.model.dtype,
            seed=0,
            max_model_len=config.model.context_tokens,
            max_num_seqs=config.rollout.max_sequences,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            load_format="auto" if loads else "dummy",
            weight_transfer_config=WeightTransferConfig(backend=backend),
            worker_extension_cls="rayward.actors.rollout.weights.DigestWorker",
            **own,
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
        what: str = "generate",
    ) -> Iterator[tuple[int, Rollouts | float]]:
        """One answer to every row of `prompts`, sampled with the row's seed at top-p 1.

        `parts` numbers the part that each row belongs to; (number, answers in the order of their
        rows) come as soon as a part has all its answers, and (-1, the seconds that all took) at the
        end. `what` names the work in the spans.
        """
        with self.span(what):
            rows_of = {
                part: [row for row, own in enumerate(parts) if own == part]
                for part in dict.fromkeys(parts)
            }
            missing = {part: len(rows) for part, rows in rows_of.items()}
            row_of = self._enqueue(prompts, seeds, temperature, max_new_tokens, stop_token_ids)
            found: dict[int, Any] = {}
            try:
                while self.llm.llm_engine.has_unfinished_requests():
                    for request in self.llm.llm_engine.step():
                        row = row_of.pop(request.request_id)
                        found[row] = request.outputs[0]
                        missing[parts[row]] -= 1
                        if not missing[parts[row]]:
                            rows = rows_of[parts[row]]
                            answers = [found.pop(row) for row in rows]
                            made = self._rollouts(
                                prompts.take(rows), prompt_index[rows], answers, stop_token_ids
                            )
                            yield parts[row], made
            finally:
                # Of a call that failed, or that nobody reads to its end: the next one must not meet
                # them.
                if row_of:
                    self.llm.llm_engine.abort_request(list(row_of))
        yield -1, self.spans[-1][2] - self.spans[-1][1]

    def _enqueue(
        self,
        prompts: Ragged,
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> dict[str, int]:
        """Hand all requests to the engine; the row of each, by the id that answers carry."""
        from vllm import SamplingParams

        requests = [{"prompt_token_ids": prompts[row].tolist()} for row in range(len(prompts))]
        sampling = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=int(seed),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                stop_token_ids=list(stop_ids),
            )
            for seed in seeds
        ]
        ids = self.llm.enqueue(requests, sampling, use_tqdm=False)
        # VLLM adds a random ending of its own.
        return {name.split("-")[0]: row for row, name in enumerate(ids)}

    def _rollouts(
        self, prompts: Ragged, prompt_index: np.ndarray, answers: list[Any], stop_ids: Sequence[int]
    ) -> Rollouts:
        # vLLM also stops at the end tokens of the folder's generation config: an answer that ends
        # with one of those and not with the template's own has not ended as conversations do.
        logprobs = [np.asarray(answer.logprobs.logprobs, dtype=np.float32) for answer in answers]
        return Rollouts(
            prompts=prompts,
            responses=Ragged.of([answer.token_ids for answer in answers]),
            prompt_index=prompt_index,
            finished=np.array([answer.token_ids[-1] in stop_ids for answer in answers], dtype=bool),
            rollout_logprobs=np.concatenate(logprobs),
            weight_version=self.version,
        )

    def probe(self, ids: list[int]) -> list[float]:
        """Log-probs of all but the first of the ids, at temperature 1."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        (answer,) = self.llm.generate({"prompt_token_ids": ids}, sampling, use_tqdm=False)
        assert answer.prompt_logprobs is not None
        pairs = zip(answer.prompt_logprobs[1:], ids[1:], strict=True)
        return [float(of[token].logprob) for of, token in pairs if of is not None]

    def sleep(self) -> None:
        """Leave the GPU's memory to others: weights and KV cache go (the next weights come by
        transfer).
        """
        self.llm.sleep(level=2)

    def wake(self, what: str) -> None:
        """Take back the memory of the `weights` or of the `kv_cache`."""
        self.llm.wake_up(tags=[what])

    # What the policy calls through rayward.actors.rollout.weights.EngineClient, in this order.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.begun = time.time()
        self.llm.collective_rpc("begin_weight_digest")
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self) -> None:
        """End of the transfer; cached prefixes belong to the old weights and go with them."""
        self.llm.finish_weight_update()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")

    def commit_weights(self, version: int) -> str:
        """Everything sampled from now on carries `version`. Returns the digest of what was
        loaded.
        """
        self.llm.update_weight_version(str(version))
        self.version = version
        self.spans.append(("receive_weights", self.begun, time.time()))
        return str(self.llm.collective_rpc("weight_digest")[0])


def _cores(rank: int, threads: int) -> str:
    """Cores for the engine's threads, taken in turn by engines on the same machine."""
    allowed = sorted(os.sched_getaffinity(0))
    return ",".join(
        str(allowed[(rank * threads + i) % len(allowed)]) for i in range(min(threads, len(allowed)))
    )
