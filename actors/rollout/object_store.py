"""A weight-transfer engine for vLLM on the CPU, "object_store".

The sender puts buckets of tensors into Ray's shared memory and the engine reads them there. vLLM
itself brings engines for NCCL and CUDA IPC, and none for the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

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

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

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
    buffers: list[ray.ObjectRef]
    """One reference, to a list of one uint8 array a tensor."""


class ObjectStoreWeightTransferEngine(
    WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]
):
    """Engine side: copies the bucket from shared memory and loads it."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        # From here on a layer collects its weights, and packs them anew when it has them all.
        initialize_layerwise_reload(self.model)
        _forget_packed_experts(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class waits for an accelerator here, and on the CPU there is none to wait for.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        arrays = ray.get(update_info.buffers[0])
        # Copies: the arrays are read-only views of shared memory, and the layerwise reload keeps
        # what it is given until a layer is complete, which may be some buckets later.
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
        # Only now do tied heads and the embedding hold the live tensor again.
        _pack_tied_heads(self.model)

    def shutdown(self) -> None:
        pass


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Let experts be packed when their weights have come, as at the start.

    On the CPU vLLM packs them where it makes their kernel. While there is a kernel, weights that
    come later are copied as they are over the packed ones.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Pack the heads that share the embedding's weight anew.

    Nobody loads them: the loaders skip their name, so the layerwise reload leaves them with a copy
    of the old weight, packed for the matrix product.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    # Not isinstance: a ParallelLMHead is a VocabParallelEmbedding too. One with a weight of its own
    # is loaded, and so packed, like any other layer.
    tied = {id(layer.weight) for layer in model.modules() if type(layer) is VocabParallelEmbedding}
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in tied:
            layer.quant_method.process_weights_after_loading(layer)


@dataclass
class ObjectStoreTrainerInitInfo(TrainerInitInfo):
    """Trainer side of the "object_store" backend."""

    backend: ClassVar[str] = "object_store"


class ObjectStoreTrainerEngine(TrainerWeightTransferEngine[ObjectStoreTrainerInitInfo]):
    """Trainer side: puts buckets of BUCKET_BYTES into shared memory, one after the other.

    A larger tensor is a bucket by itself.
    """

    init_info_cls = ObjectStoreTrainerInitInfo

    @classmethod
    def trainer_init(
        cls,
        init_info: ObjectStoreTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
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
        # Every rank iterates to the end: under ZeRO-3 each step gathers a tensor from all ranks.
        for name, tensor in self.source:
            if not self.is_sender:
                continue
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                self._ship(bucket)
                bucket, size = [], 0
            # A copy: under ZeRO-3 the gathered tensor is released as soon as the loop goes on.
            bucket.append((name, tensor.to("cpu", copy=True)))
            size += tensor.nbytes
        if self.is_sender:
            self._ship(bucket)  # the last, which nothing pushed out
            self.client.finish_weight_update()

    def _ship(self, bucket: list[tuple[str, Tensor]]) -> None:
        # As bytes, since numpy has no bfloat16.
        arrays = [tensor.contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in bucket]
        # Returns when every engine has loaded the bucket. Then nobody refers to it, and Ray frees
        # it before the next one comes.
        self.client.update_weights(
            {
                "names": [name for name, _ in bucket],
                "dtype_names": [str(tensor.dtype).split(".")[-1] for _, tensor in bucket],
                "shapes": [list(tensor.shape) for _, tensor in bucket],
                "buffers": [ray.put(arrays)],
            }
        )


def register() -> None:
    """Make "object_store" known to vLLM in this process; calling it again changes nothing."""
    # vLLM refuses a name that it knows, and has no public way to ask for it.
    if "object_store" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("object_store", ObjectStoreWeightTransferEngine)
        WeightTransferTrainerFactory.register_engine("object_store", ObjectStoreTrainerEngine)
