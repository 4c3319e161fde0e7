"""Ray Train's torch backend, with each worker's groups on the interface of its node's address."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from rayward.cluster.interfaces import use_own_interface


class InterfaceConfig(TorchConfig):
    """For `TorchTrainer(torch_config=...)`."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _InterfaceBackend


class _InterfaceBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # Before the group is made, which happens in here.
        worker_group.execute(use_own_interface)
        super().on_start(worker_group, backend_config)
