"""Weights from the policy to the rollout engines over vLLM's weight-transfer API.

vLLM brings engines for NCCL and CUDA IPC, actors/rollout/object_store.py one for the CPU. Every
transfer carries a version, is bracketed by vLLM's layerwise reload (on the CPU the live weights are
packed, and loading into them in place would leave some stale), ends with a reset of the prefix
cache, and is proved twice. The digests of both sides must be equal (actors/rollout/digest.py). And
the engine must give the sender's log-probs of a fixed row (`RolloutGroup.prove`), since on the CPU
it computes with packed copies that nobody can read. Engines start with random weights where the
first transfer brings the model, so that one which leaves any weight behind is refused at the start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from rayward.actors.calls import wait_for
from rayward.actors.models.forward import RankContext
from rayward.actors.models.saved import as_saved
from rayward.actors.process import workers_per_engine
from rayward.actors.pulse import Unanswered
from rayward.actors.rollout.digest import WeightDigest
from rayward.actors.rollout.object_store import ObjectStoreTrainerInitInfo, register
from rayward.cluster.interfaces import use_own_interface
from rayward.configs.schema import Config

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from transformers import PreTrainedModel

# Of cluster.call_timeout_s, which is also how long the driver waits for the sender. A transfer has
# less, so that its own error, which names the late engine, comes first.
SHARE_OF_DEADLINE = 0.8


class HasWeights(Protocol):
    """A training engine or a frozen model."""

    @property
    def hf_model(self) -> PreTrainedModel:
        """The Hugging Face model that they are of."""

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """(name, whole tensor) of every weight, always in the same order.

        A collective under ZeRO-3.
        """


class WeightReader(WeightSource):
    """A model's weights as vLLM wants them, with the digest of the last pass.

    `keeps`: the sender has a copy of them on its host too, `kept`; `copies`: this rank makes it.
    """

    def __init__(self, engine: HasWeights, keeps: bool = False, copies: bool = False):
        self.engine, self.keeps, self.copies = engine, keeps, copies
        self.digest = WeightDigest()
        self.kept: list[tuple[str, Tensor]] = []
        self.passing: Iterator[tuple[str, Tensor]] = iter(())
        """What is left of the pass that has begun."""

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and shapes of what an iteration yields, in its order.

        A pass over the weights (a collective under ZeRO-3), since only that says in which parts
        they are saved. It leaves the digest alone.
        """
        return [
            ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._saved()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        # vLLM iterates once per transfer, on every rank.
        self.digest, self.kept = WeightDigest(), []
        self.passing = self.digest.watch(self._remembered() if self.copies else self._saved())
        return self.passing

    def _remembered(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._saved():
            self.kept.append((name, tensor.to("cpu", copy=True)))
            yield name, tensor

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        # The loaders of vLLM know the names of checkpoints, not those of transformers' modules.
        return as_saved(self.engine.hf_model, self.engine.weights())


class KeptWeights(WeightReader):
    """Weights that a reader has kept, whatever its model has learned since."""

    def __init__(self, reader: WeightReader, device: torch.device):
        super().__init__(reader.engine)
        self.weights, self.device = reader.kept, device

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.to(self.device)) for name, tensor in self.weights)


class EngineClient:
    """vLLM's weight-sync protocol over rollout actors.

    Every wait has a deadline, and its error names the late engine.
    """

    def __init__(
        self, engines: Sequence[ActorHandle], timeout_s: float, workers_per_engine: int = 1
    ):
        self.engines = engines
        self.timeout_s = timeout_s
        self.workers_per_engine = workers_per_engine
        # Of the transfer that is going on: all its calls together have `timeout_s`.
        self.deadline: float | None = None
        # What lets the sender out of a broadcast that an engine will never join.
        self.give_up: Callable[[], None] | None = None
        self.failure: Exception | None = None

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`method` on every engine with its own arguments; results in the order of the engines.

        Raises TimeoutError with the number of a late engine.
        """
        # All start before any is waited for: over NCCL they meet each other inside the call.
        calls = [
            getattr(engine, method).remote(*engine_arguments)
            for engine, engine_arguments in zip(self.engines, arguments, strict=True)
        ]
        remaining_s = self.timeout_s
        if self.deadline is not None:
            remaining_s = max(0.0, self.deadline - time.monotonic())
        return wait_for(
            calls,
            remaining_s,
            lambda late: Unanswered(
                f"weight transfer: rollout engine {', '.join(map(str, late))} did not finish "
                f"{method} within {self.timeout_s:.0f} s"
            ),
        )

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            # vLLM's sender knows of one engine and gives all of them the same rank. NCCL ranks: 0
            # is the trainer, then the workers of engine after engine.
            if "rank_offset" in info:
                info["rank_offset"] = 1 + index * self.workers_per_engine
        self.call("init_weight_transfer_engine", [(info,) for info in infos])

    def start_weight_update(self) -> None:
        self.deadline = time.monotonic() + self.timeout_s
        self.failure = None
        self.call("start_weight_update", [()] * len(self.engines))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let every engine receive what `update_info` describes.

        Over NCCL this runs in a thread of the sender, which broadcasts meanwhile to an engine that
        may be gone: then the sender has to give up too, or it would wait for ever.
        """
        try:
            self.call("update_weights", [(update_info,)] * len(self.engines))
        except Exception as error:
            self.failure = error
            if self.give_up:
                self.give_up()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        # The version comes with `commit`, which only a transfer that went well reaches.
        self.call("finish_weight_update", [()] * len(self.engines))

    def commit(self, version: int) -> list[str]:
        """Name the weights just received; the digest that each engine took of them."""
        digests = self.call("commit_weights", [(version,)] * len(self.engines))
        self.deadline = None
        return digests


class WeightSender:
    """A model's way to all rollout engines.

    Every rank of a training group has one and calls it, since reading the weights is a collective
    under ZeRO-3; only rank 0 talks to the engines.
    """

    def __init__(
        self, source: WeightReader, client: EngineClient, backend: str, context: RankContext
    ):
        register()
        self.source, self.client = source, client
        self.backend, self.context = backend, context
        self.transfer = WeightTransferTrainerFactory.trainer_init(
            self._init_info(backend, len(client.engines) * client.workers_per_engine),
            client=self.client,
            source=self.source,
        )
        # Only the NCCL sender has a group. To destroy it ends the broadcast that is going on.
        if group := getattr(self.transfer, "model_update_group", None):
            self.client.give_up = group.destroy

    def _init_info(self, backend: str, num_workers: int) -> TrainerInitInfo:
        if backend == "object_store":
            return ObjectStoreTrainerInitInfo(rank=self.context.rank)
        if backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import (
                DEFAULT_PACKED_BUFFER_SIZE_BYTES,
                IPCTrainerInitInfo,
            )

            # vLLM refuses a tensor that is larger than its buffer, as an embedding may be.
            largest_bytes = max(
                meta.dtype.itemsize * math.prod(meta.shape) for meta in self.source.metadata()
            )
            return IPCTrainerInitInfo(
                rank=self.context.rank,
                packed=True,
                packed_buffer_size_bytes=max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, largest_bytes),
            )
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        # Every rank fills this in; vLLM opens the address of rank 0 alone.
        return NCCLTrainerInitInfo(
            master_address=ray.util.get_node_ip_address(),
            master_port=get_open_port(),
            world_size=1 + num_workers,
            rank=self.context.rank,
        )

    def send(self, version: int) -> dict[str, Any] | None:
        """Transfer, check the digests, commit.

        Rank 0 returns the digest, the bytes sent and the seconds it took, other ranks None. Raises
        RuntimeError where an engine loaded other bits than were sent, TimeoutError where one is
        late.
        """
        started_at = time.perf_counter()
        try:
            self.transfer.send_weights()
        except Exception as error:
            # Under ZeRO-3 the other ranks are at it until the last tensor.
            for _ in self.source.passing:
                pass
            # A broadcast that was given up fails with an error of NCCL; the engine's is the cause.
            raise self.client.failure or error from None
        if self.context.rank != 0:
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
            "seconds": time.perf_counter() - started_at,
        }

    def again(self, engines: Sequence[ActorHandle], version: int) -> None:
        """Bring what was sent last, `version`, to these engines alone, which have been started
        anew.

        Every rank calls it. RuntimeError where the model has learned since and nothing was kept.
        """
        source, context = WeightReader(self.source.engine), self.context
        if self.source.keeps:
            if context.rank != 0:
                return
            source = KeptWeights(self.source, context.device)
            context = RankContext(0, 1, context.device)
        client = EngineClient(engines, self.client.timeout_s, self.client.workers_per_engine)
        try:
            sender = WeightSender(source, client, self.backend, context)
        except Exception:
            # Of an engine that is lost again: other ranks are at the weights meanwhile.
            for _ in source:
                pass
            raise
        sent = sender.send(version)
        if sent and sent["digest"] != self.source.digest.text():
            raise RuntimeError(
                f"weight transfer {version}: a rollout engine that was started anew has other "
                "weights than the others: the policy has learned meanwhile"
            )


def sender_to(
    engines: Sequence[ActorHandle],
    model: HasWeights,
    backend: str,
    context: RankContext,
    config: Config,
    keeps: bool = False,
) -> WeightSender:
    """A model's way to the engines of a run. Every rank of `context` must call it.

    `keeps`: rank 0 keeps a copy of what was sent last, for engines that are started anew while the
    model learns.
    """
    use_own_interface()  # of a frozen model, which is in no other group
    deadline_s = SHARE_OF_DEADLINE * config.cluster.call_timeout_s
    client = EngineClient(engines, deadline_s, workers_per_engine(config))
    source = WeightReader(model, keeps, keeps and context.rank == 0)
    return WeightSender(source, client, backend, context)
