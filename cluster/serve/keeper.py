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
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

NAME, NAMESPACE = "serve-keeper", "rayward"
THREADS = 128
"""Of the keeper: one for each application that is up, another for one that comes or goes."""
TELEMETRY = ("llm_serve_telemetry", "llm_serve_telemetry")
"""Name and namespace of an actor that ray.serve.llm makes."""
DOWN_WITHIN_S = 90
"""Longest wait for an application, and Serve, to be down."""
ANSWER_WITHIN_S = 75
"""The keeper's own wait: shorter, so that its sentence is what is told."""
HOLDER_ENDS_S = 3
"""Time in which the holder of a run that has just ended does too."""
RETRY_S = 5

_held: dict[str, tuple[ActorHandle, ActorHandle, str]] = {}
"""Of this process: the holder of each application, the keeper, and the key of the entry there."""


def hold(name: str) -> None:
    """Have application `name`, not started yet, taken down by `release` or with this process.

    ValueError where another command that runs has one of this name up.
    """
    holder, key = ray.remote(num_cpus=0)(Holder).remote(), uuid.uuid4().hex
    keeper = ray.remote(num_cpus=0, max_concurrency=THREADS)(Keeper).options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True
    )
    deadline = time.monotonic() + DOWN_WITHIN_S
    while True:
        actor = keeper.remote()
        try:
            if ray.get(actor.register.remote(name, holder, key), timeout=DOWN_WITHIN_S):
                break
        except RayTaskError as error:
            raise error.cause from None  # without the keeper's stack
        except RayActorError:
            pass
        # It was about to end; the next one has the same name.
        if time.monotonic() > deadline:
            raise TimeoutError(f"Ray started no actor {NAME} within {DOWN_WITHIN_S} s")
        time.sleep(0.5)
    _held[name] = (holder, actor, key)


def release(name: str) -> None:
    """Take the application down, and Serve where no other needs it; waits until that is done.

    TimeoutError where it is not in time: the keeper goes on with it.
    """
    if name not in _held:
        return
    holder, actor, key = _held.pop(name)
    ray.kill(holder)
    try:
        ray.get(actor.wait_down.remote(name, key), timeout=DOWN_WITHIN_S)
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError:  # its node was lost, maybe with Serve's controller
        pass


class Holder:
    """Ends with its driver."""

    def wait(self) -> None:
        """Never returns: the call fails when the actor ends."""
        threading.Event().wait()


class Keeper:
    """Takes applications down; its calls run in threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.names: dict[str, str] = {}
        """Applications with the keys of those that entered them."""
        self.going: dict[str, str] = {}
        """Those whose holder has ended, with why they are not down yet, where that is known."""
        self.owns_serve = self.ends_serve = self.ended = False

    def register(self, name: str, holder: ActorHandle, key: str) -> bool:
        """An application of this name will be started, and goes with its holder.

        False where this keeper is about to end; ValueError where another holder lives.
        """
        with self.changed:
            # A run that has been killed this moment is not in the way.
            self.changed.wait_for(
                lambda: name not in self.names or name in self.going, HOLDER_ENDS_S
            )
            # What a run that has died served goes first: the next would be taken for it.
            self._wait(name, lambda: name not in self.going and not self.ends_serve)
            if name in self.names:
                raise ValueError(
                    f"Serve application {name} is up for another command that runs: stop that one "
                    "first"
                )
            if self.ended:
                return False
            # A Serve that was there before us is not ours to end.
            if not self.names and _client() is None:
                self.owns_serve = True
            self.names[name] = key
        # From here: a driver may be killed between two calls of its own.
        ray.get_runtime_context().current_actor.keep.remote(name, holder)
        return True

    def wait_down(self, name: str, key: str) -> None:
        """Wait until the application that was entered with `key` is down; its holder has ended."""
        with self.changed:
            self._wait(name, lambda: self.names.get(name) != key)

    def _wait(self, name: str, until: Callable[[], bool]) -> None:
        if not self.changed.wait_for(until, ANSWER_WITHIN_S):
            raise TimeoutError(
                f"Serve application {name} of a run that has ended was not down within "
                f"{ANSWER_WITHIN_S} s: {self.going.get(name) or 'Serve takes longer'}"
            )

    def keep(self, name: str, holder: ActorHandle) -> None:
        """Wait for the holder to end, then take its application down."""
        with contextlib.suppress(RayActorError):
            ray.get(holder.wait.remote())
        with self.changed:
            self.going[name] = ""
            self.changed.notify_all()
        # Until it is down: who else would do it?
        while not self._take_down(name):
            time.sleep(RETRY_S)
        ray.get_runtime_context().current_actor.end.remote()

    def end(self) -> None:
        """End the keeper where it has nothing to keep."""
        time.sleep(1)  # the answer of `wait_down` is on its way
        with self.changed:
            self.ended = not self.names
        if self.ended:
            # Not `exit_actor`, after which an actor with threads stays.
            ray.kill(ray.get_runtime_context().current_actor)

    def _take_down(self, name: str) -> bool:
        """Whether an application that goes, and Serve where it was the last one, are down."""
        from ray import serve  # here, so that a holder does without it

        why = ""
        try:
            if _client() is not None:
                serve.delete(name)
            with self.changed:
                # While Serve ends nobody is let in: a run would join it.
                self.ends_serve = self.owns_serve and set(self.names) == {name}
                if not self.ends_serve:
                    self._forget(name)
                    return True
            if _client() is not None and not serve.status().applications:
                _shut_down()
        except Exception as error:  # any: it is told to who waits, and tried again
            why = (str(error).strip() or repr(error)).splitlines()[-1]
        with self.changed:
            self.ends_serve = False
            if why:
                self.going[name] = why
            else:
                self._forget(name)
            self.changed.notify_all()
        return not why

    def _forget(self, name: str) -> None:
        del self.names[name], self.going[name]
        self.changed.notify_all()


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
