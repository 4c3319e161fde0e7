"""Weights from the policy to the rollout engines over vLLM's weight-transfer API.

vLLM brings engines for NCCL and CUDA IPC, actors/rollout/object_store.py one for the CPU. Every
transfer carries a version, is bracketed by vLLM's layerwise reload (on the CPU the live weights are
packed, and loading into them in place would leave some stale), ends with a reset of the prefix
cache, and is proved twice. Both sides sum the bits of each tensor, the sender as it sends, the
engine as its loader consumes, and the digests must be equal. And the engine must give the sender's
log-probs of a fixed row (`RolloutGroup.prove`), since on the CPU it computes with packed copies
that nobody can read. Engines start with random weights where the first transfer brings the model,
so that one which leaves any weight behind is refused at the start.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from rayward.actors.calls import wait_for
from rayward.actors.models.forward import RankContext
from rayward.actors.models.saved import as_saved
from rayward.actors.process import workers_per_engine
from rayward.actors.rollout.object_store import ObjectStoreTrainerInitInfo, register
from rayward.configs.schema import Config

# That a transfer may take of the driver's patience: its own error names the engine.
SHARE_OF_DEADLINE = 0.8


# ------------------------------------------------------------------------------------
# Digest


def checksum(tensor: Tensor) -> int:
    """Sum of a tensor's bit patterns, each weighted by its position modulo a prime: exact, cheap,
    order-sensitive.
    """
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(-1).view(widths[tensor.element_size()])
    total = 0
    for start in range(0, len(bits), 2**24):
        part = bits[start : start + 2**24].to(torch.int64)
        position = torch.arange(start, start + len(part), device=part.device).remainder(65521) + 1
        total += int((part * position).sum())
    return total


class WeightDigest:
    """Checksums of named tensors as one short text, whatever order they came in."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Any, ...]] = {}
        self.bytes = 0

    def watch(self, weights: Any) -> Iterator[tuple[str, Tensor]]:
        """Pass (name, tensor) pairs on and remember them."""
        for name, tensor in weights:
            self.sums[name] = (str(tensor.dtype), tuple(tensor.shape), checksum(tensor))
            self.bytes += tensor.nbytes
            yield name, tensor

    def text(self) -> str:
        return hashlib.sha256(repr(sorted(self.sums.items())).encode()).hexdigest()[:16]


class DigestWorker:
    """Mixed into vLLM's worker (`worker_extension_cls`): takes the digest of what the model's
    loader consumes.
    """

    def begin_weight_digest(self) -> None:
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        load = type(model).load_weights.__get__(model)
        self._digest = WeightDigest()
        model.load_weights = lambda weights, *args, **kwargs: load(
            self._digest.watch(weights), *args, **kwargs
        )

    def weight_digest(self) -> str:
        return self._digest.text()

    def draw_once(self) -> None:
        """Take vLLM's sampler of other devices on the CPU: its own draws noise for all rows at
        first, and then once more for those with a seed. The tokens are the same; with 49k tokens to
        choose from it saves 15 % of a step."""
        sampler = self.model_runner.sampler.topk_topp_sampler  # type: ignore[attr-defined]
        sampler.forward = sampler.forward_native


# ------------------------------------------------------------------------------------
# The trainer's end


class HasWeights(Protocol):
    """A training engine or a frozen model."""

    @property
    def hf_model(self) -> Any:
        """The Hugging Face model that they are of."""

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """(name, whole tensor) of every weight, always in the same order; a collective under
        ZeRO-3.
        """


class WeightReader(WeightSource):
    """A model's weights as vLLM wants them, with the digest of the last pass."""

    def __init__(self, engine: HasWeights):
        self.engine = engine
        self.digest = WeightDigest()

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._saved()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.digest = WeightDigest()
        return self.digest.watch(self._saved())

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        return as_saved(self.engine.hf_model, self.engine.weights())


class EngineClient:
    """vLLM's weight-sync protocol over rollout actors, every wait with a deadline that names the
    late engine.
    """

    def __init__(self, engines: list[Any], timeout_s: float, workers_per_engine: int = 1):
        self.engines, self.timeout_s, self.workers_per_engine = (
            engines,
            timeout_s,
            workers_per_engine,
        )
        self.until: float | None = None  # the end of a transfer that is going on
        self.give_up: Callable[[], None] = lambda: None
        self.failure: Exception | None = None

    def call(self, method: str, arguments: list[tuple]) -> list[Any]:
        """`method` on every engine with its own arguments; raises TimeoutError with the number of a
        late one.
        """
        calls = [
            getattr(engine, method).remote(*own)
            for engine, own in zip(self.engines, arguments, strict=True)
        ]
        return wait_for(
            calls,
            self.timeout_s if self.until is None else max(0.0, self.until - time.monotonic()),
            lambda late: TimeoutError(
                f"weight transfer: rollout engine {late} did not finish {method} within "
                f"{self.timeout_s:.0f} s"
            ),
        )

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            # NCCL ranks: 0 is the trainer, then the workers of engine after engine.
            if "rank_offset" in info:
                info["rank_offset"] = 1 + index * self.workers_per_engine
        self.call("init_weight_transfer_engine", [(info,) for info in infos])

    def start_weight_update(self) -> None:
        self.until, self.failure = time.monotonic() + self.timeout_s, None
        self.call("start_weight_update", [()] * len(self.engines))

    def update_weights(self, update_info: Any) -> None:
        """Over NCCL the trainer sends at the same time, to an engine that may be gone: then it has
        to give up too.
        """
        try:
            self.call("update_weights", [(update_info,)] * len(self.engines))
        except Exception as error:
            self.failure = error
            self.give_up()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.call("finish_weight_update", [()] * len(self.engines))

    def commit(self, version: int) -> list[str]:
        """Name the weights just received; the digest that each engine took of them."""
        digests = self.call("commit_weights", [(version,)] * len(self.engines))
        self.until = None
        return digests


class WeightSender:
    """A model's way to all rollout engines; every rank of a training group has one, rank 0
    talks.
    """

    def __init__(self, engine: HasWeights, client: EngineClient, backend: str, place: RankContext):
        register()
        self.source = WeightReader(engine)
        self.place = place
        self.client = client
        self.transfer = WeightTransferTrainerFactory.trainer_init(
            self._init_info(backend, len(client.engines) * client.workers_per_engine),
            client=self.client,
            source=self.source,
        )
        if group := getattr(self.transfer, "model_update_group", None):
            self.client.give_up = group.destroy

    def _init_info(self, backend: str, num_workers: int) -> TrainerInitInfo:
        if backend == "object_store":
            return ObjectStoreTrainerInitInfo(rank=self.place.rank)
        if backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import (
                DEFAULT_PACKED_BUFFER_SIZE_BYTES,
                IPCTrainerInitInfo,
            )

            largest = max(of.dtype.itemsize * math.prod(of.shape) for of in self.source.metadata())
            return IPCTrainerInitInfo(
                rank=self.place.rank,
                packed=True,
                packed_buffer_size_bytes=max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, largest),
            )
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        return NCCLTrainerInitInfo(
            master_address=ray.util.get_node_ip_address(),
            master_port=get_open_port(),
            world_size=1 + num_workers,
            rank=self.place.rank,
        )

    def send(self, version: int) -> dict[str, Any] | None:
        """Transfer, check the digests, commit. Rank 0 returns the digest, the bytes sent and the
        seconds it took.

        Raises RuntimeError where an engine loaded other bits than were sent, TimeoutError where one
        is late.
        """
        begun = time.perf_counter()
        try:
            self.transfer.send_weights()
        except Exception as error:
            raise self.client.failure or error from None
        if self.place.rank != 0:
            return None
        sent = self.source.digest.text()
        for index, received in enumerate(self.client.commit(version)):
            if received != sent:
                raise RuntimeError(
                    f"weight transfer {version}: rollout engine {index} loaded digest {received}, "
                    f"the policy sent {sent}"
                )
        return {
            "digest": sent,
            "bytes": self.source.digest.bytes,
            "seconds": time.perf_counter() - begun,
        }


def sender_to(
    engines: list[Any], model: HasWeights, backend: str, place: RankContext, config: Config
) -> WeightSender:
    """A model's way to the engines of a run."""
    deadline_s = SHARE_OF_DEADLINE * config.cluster.call_timeout_s
    client = EngineClient(engines, deadline_s, workers_per_engine(config))
    return WeightSender(model, client, backend, place)
