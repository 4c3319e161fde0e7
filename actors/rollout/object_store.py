"""A weight-transfer engine for vLLM on the CPU, "object_store": the sender puts buckets of tensors
into Ray's shared memory and the engine reads them there. vLLM itself brings engines for NCCL and
CUDA IPC, and none for the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)

BUCKET_BYTES = 64 * 2**20  # of which the sender, the object store and the engine hold one each


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """One bucket: names, dtypes and shapes, and a reference to the bytes in Ray's object store."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    buffers: list[Any]


class ObjectStoreWeightTransferEngine(
    WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]
):
    """Engine side: maps the bucket from shared memory and loads it."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        _forget_packed_experts(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class waits for an accelerator here, and on the CPU there is none to wait for.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        arrays = ray.get(update_info.buffers[0])
        tensors = [
            torch.from_numpy(array.copy()).view(getattr(torch, dtype)).reshape(shape)
            for array, dtype, shape in zip(
                arrays, update_info.dtype_names, update_info.shapes, strict=True
            )
        ]
        self.model.load_weights(zip(update_info.names, tensors, strict=True))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _pack_tied_heads(self.model)

    def shutdown(self) -> None:
        pass


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Let experts be packed when their weights have come, as at the start.

    vLLM packs them on the CPU with their kernel, and takes weights that come later as they are for
    packed ones.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )
    from vllm.platforms import current_platform

    for layer in model.modules() if current_platform.is_cpu() else ():
        if isinstance(method := getattr(layer, "quant_method", None), UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Pack the heads that share the embedding's weight anew.

    Nobody loads them: the loaders skip their name, so the layerwise reload leaves them the product
    with the old weight.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    embeddings = [
        layer.weight for layer in model.modules() if type(layer) is VocabParallelEmbedding
    ]
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead) and any(
            layer.weight is weight for weight in embeddings
        ):
            layer.quant_method.process_weights_after_loading(layer)


@dataclass
class ObjectStoreTrainerInitInfo(TrainerInitInfo):
    """Trainer side of the "object_store" backend."""

    backend: ClassVar[str] = "object_store"


class ObjectStoreTrainerEngine(TrainerWeightTransferEngine[ObjectStoreTrainerInitInfo]):
    """Trainer side: puts buckets of at most BUCKET_BYTES into shared memory, one after the
    other.
    """

    init_info_cls = ObjectStoreTrainerInitInfo

    @classmethod
    def trainer_init(
        cls,
        init_info: ObjectStoreTrainerInitInfo,
        *,
        client: Any,
        source: WeightSource | None = None,
    ) -> ObjectStoreTrainerEngine:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            client.init_weight_transfer_engine({})
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        if self.is_sender:
            self.client.start_weight_update()
        bucket: list[tuple[str, Tensor]] = []
        size = 0
        for name, tensor in self.source:  # every rank iterates: under ZeRO-3 it is a collective
            if not self.is_sender:
                continue
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                self._ship(bucket)
                bucket, size = [], 0
            # A copy: under ZeRO-3 the gathered tensor is released as soon as the loop goes on.
            bucket.append((name, tensor.to("cpu", copy=True)))
            size += tensor.nbytes
        if self.is_sender:
            self._ship(bucket)
            self.client.finish_weight_update()

    def _ship(self, bucket: list[tuple[str, Tensor]]) -> None:
        arrays = [tensor.contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in bucket]
        self.client.update_weights(
            {
                "names": [name for name, _ in bucket],
                "dtype_names": [str(t.dtype).split(".")[-1] for _, t in bucket],
                "shapes": [list(t.shape) for _, t in bucket],
                "buffers": [ray.put(arrays)],
            }
        )


def register() -> None:
    """Make "object_store" known to vLLM in this process; calling it again changes nothing."""
    if "object_store" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("object_store", ObjectStoreWeightTransferEngine)
        WeightTransferTrainerFactory.register_engine("object_store", ObjectStoreTrainerEngine)
