"""Ray Train's trainer, as our drivers start it."""

from __future__ import annotations

from typing import Any


def trainer(*arguments: Any, **named: Any) -> Any:
    """A TorchTrainer of which nothing is left where its driver is killed.

    Ray's own starts a detached actor that is to remove the placement group of the workers should
    the controller die. Ray removes that group by itself, once the controller and the driver's job
    have ended; and of a driver that is killed the detached one stays for good, since a thread
    cannot end its actor. So where the controller alone dies, the group stays until the driver ends.
    """
    # Here, since `connect` says before which version of Ray Train that is.
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [
                callback
                for callback in callbacks
                if not isinstance(callback, PlacementGroupCleanerCallback)
            ]

    return Trainer(*arguments, **named)
