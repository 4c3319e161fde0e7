"""Who takes an application of Serve down on a joined cluster, also where its run has died.

Actors of Serve are detached: they outlive the driver that started them. So each application has a
holder, an actor of its driver that ends when the driver does, however that comes; and one detached
keeper for the whole cluster waits for the holders, deletes their applications, and ends Serve and
itself after the last. One for all, or a run that ends would shut Serve down under one that starts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

NAME, NAMESPACE = "serve-keeper", "rayward"
ENDPOINTS = 64
"""Threads of the keeper, one for each application that it waits for."""
TELEMETRY = ("llm_serve_telemetry", "llm_serve_telemetry")
"""Name and namespace of an actor that ray.serve.llm makes."""
DOWN_WITHIN_S = 90
"""Longest wait for an application, and Serve, to be down."""

_held: dict[str, tuple[ActorHandle, ray.ObjectRef]] = {}
"""Of this process: the holder of each application, and the keeper's call that ends when the
application is down."""


def hold(name: str) -> None:
    """Have application `name`, not started yet, taken down by `release` or with this process."""
    holder = ray.remote(num_cpus=0)(Holder).remote()
    keeper = ray.remote(num_cpus=0, max_concurrency=ENDPOINTS)(Keeper).options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True
    )
    deadline = time.monotonic() + DOWN_WITHIN_S
    while True:
        actor = keeper.remote()
        # Both at once: a driver may be killed between two calls.
        registered, down = actor.register.remote(name), actor.keep.remote(name, holder)
        try:
            if ray.get(registered, timeout=DOWN_WITHIN_S):
                break
        except RayActorError:
            pass
        # It was about to end; the next one has the same name.
        if time.monotonic() > deadline:
            raise TimeoutError(f"Ray started no actor {NAME} within {DOWN_WITHIN_S} s")
        time.sleep(0.5)
    _held[name] = (holder, down)


def release(name: str) -> None:
    """Take the application down, and Serve where no other needs it; waits until that is done."""
    if name not in _held:
        return
    holder, down = _held.pop(name)
    ray.kill(holder)
    with contextlib.suppress(RayActorError):  # its node was lost, maybe with Serve's controller
        ray.get(down, timeout=DOWN_WITHIN_S)


class Holder:
    """Ends with its driver."""

    def wait(self) -> None:
        """Never returns: the call fails when the actor ends."""
        threading.Event().wait()


class Keeper:
    """Takes applications down; its calls run in threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.names: set[str] = set()
        self.owns_serve = self.ended = False

    def register(self, name: str) -> bool:
        """An application of this name will be started; False where this keeper is about to end."""
        with self.changed:
            # What a run that has died served goes first: the next would be taken for it.
            if not self.changed.wait_for(lambda: name not in self.names, DOWN_WITHIN_S):
                raise TimeoutError(
                    f"Serve application {name} of an earlier run was not down within "
                    f"{DOWN_WITHIN_S} s"
                )
            if self.ended:
                return False
            # A Serve that was there before us is not ours to end.
            if not self.names and _client() is None:
                self.owns_serve = True
            self.names.add(name)
            return True

    def keep(self, name: str, holder: ActorHandle) -> None:
        """Wait for the holder to end, then take its application down."""
        with contextlib.suppress(RayActorError):
            ray.get(holder.wait.remote())
        with self.changed:
            try:
                self._take_down(name)
            finally:
                self.names.discard(name)
                self.changed.notify_all()
        ray.get_runtime_context().current_actor.end.remote()

    def end(self) -> None:
        """End the keeper where it has nothing to keep."""
        time.sleep(1)  # the answer of `keep` is on its way
        with self.changed:
            self.ended = not self.names
        if self.ended:
            # Not `exit_actor`, after which an actor with threads stays.
            ray.kill(ray.get_runtime_context().current_actor)

    def _take_down(self, name: str) -> None:
        from ray import serve  # here, so that a holder does without it

        if _client() is None:
            return
        serve.delete(name)
        if self.owns_serve and self.names == {name} and not serve.status().applications:
            _shut_down()


def _client() -> Any:
    """Serve's client; None where no Serve runs."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def _shut_down() -> None:
    """End Serve, without `serve.shutdown`: that waits in a call which its controller never answers,
    since it ends itself, and Ray tells every driver of the job that the call has failed.
    """
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve.context import _set_global_client

    ray.get(_client()._controller.graceful_shutdown.remote(wait=False), timeout=DOWN_WITHIN_S)
    deadline = time.monotonic() + DOWN_WITHIN_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            break
        time.sleep(0.2)
    _set_global_client(None)
    # What counts the models for Ray's statistics is detached too, and made again where needed.
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(*TELEMETRY))
