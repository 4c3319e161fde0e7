"""What stops a stage, and from an exception, which may have crossed Ray, to what a person reads."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

from rayward.cluster.hosts import lost


class StageError(RuntimeError):
    """A stage cannot run; the message says what to do."""


# Compared by name: what Ray raises for a worker's ValueError is an instance of ValueError too, but
# is named RayTaskError(ValueError), and its message is a whole traceback. Its `cause` is the error.
_OURS = ("StageError", "ConfigError", "ValueError")


# Errors that say more than what they come of. (An error of ours is no loss of a process.)
_TOLD = (*_OURS, "ProcessLost", "Unanswered")


# Of Ray, and of torch's groups of processes. By name too: torch and Ray need not be loaded.
_OF_HOSTS = {
    "RayActorError",
    "NodeDiedError",
    "WorkerCrashedError",
    "LocalRayletDiedError",
    "ObjectLostError",
    "ActorPlacementGroupRemoved",
    "TaskPlacementGroupRemoved",
    "ProcessLost",
    "DistBackendError",
    "DistNetworkError",
}
# A RuntimeError of Gloo, or such an error in the text that Ray Train makes of those of its workers.
_OF_COLLECTIVES = re.compile(
    r"gloo.*([Cc]losed|[Rr]eset|[Rr]efused|[Tt]imeout|[Tt]imed out)"
    r"|NCCL (error|operation|communicator)|DistBackendError|DistNetworkError"
    r"|ActorDiedError|ActorUnavailableError|NodeDiedError"
)
NOTICED_S = 70.0
"""Ray takes a host for dead after 65 s (docs/scale.md); connections to it may break at once."""


def explain(error: BaseException, missing: Callable[[float], list[str]] = lost) -> str:
    """In one paragraph: what says which stage, setting or file is at fault, else the innermost
    cause, with its kind where that helps.

    A ValueError is ours, and says more than what it was made of; of what Ray makes of one the class
    has another name. Where a host is gone (`missing`, asked how long it may wait) that is told
    too, or, of errors that come of it, alone.
    """
    cause: BaseException = error
    seen: set[int] = set()  # a chain of causes may be a circle
    while id(cause) not in seen and type(cause).__name__ not in _TOLD:
        seen.add(id(cause))
        # Ray keeps the worker's exception in `cause`, Python in `__cause__`.
        inner = getattr(cause, "cause", None) or cause.__cause__
        if not isinstance(inner, BaseException):
            break
        cause = inner
    message = str(cause).strip() or "no message"
    ours = type(cause).__name__ in _OURS
    kinds = (ValueError, FileNotFoundError, TimeoutError)
    if not isinstance(cause, kinds) and type(cause).__name__ not in _TOLD:
        message = f"{type(cause).__name__}: {message}{_hint(cause, message)}"
        message += "\nRAYWARD_TRACEBACK=1 shows where it came from"
    if ours:
        return message
    of_hosts = _may_be_of_a_host(cause)
    if not (gone := _lost(missing, NOTICED_S if of_hosts else 0)):
        return message
    told = (
        f"host {', '.join(gone)} is gone: Ray's head no longer hears of it, and what ran there is "
        "lost; when the cluster has room again, run the same command again to go on"
    )
    return told if of_hosts else f"{message}\n{told}"


def of_infrastructure(error: BaseException) -> bool:
    """Whether a process or a host was lost, or hangs: elsewhere, or again, the same may work.

    An actor whose constructor failed is none of them: it would fail again.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while isinstance(cause, BaseException) and id(cause) not in seen:
        seen.add(id(cause))
        if type(cause).__name__ in _OURS or getattr(cause, "actor_init_failed", False):
            return False
        low = type(cause).__name__ == "OutOfMemoryError" and _of_ray(cause)
        if low or type(cause).__name__ == "Unanswered" or _may_be_of_a_host(cause):
            return True
        cause = getattr(cause, "cause", None) or cause.__cause__
    return False


def _of_ray(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "ray"


def _hint(cause: BaseException, message: str) -> str:
    """What helps where something was full."""
    if "CUDA out of memory" in message:
        return (
            "\nless memory on a GPU: the stage's optimizer.micro_batch_tokens, "
            "optimizer.gradient_checkpointing; of engines rollout.gpu_memory_fraction, "
            "rollout.max_sequences"
        )
    if type(cause).__name__ == "ObjectStoreFullError":
        return (
            "\nRay's shared memory is full: raise cluster.object_store_gib (on a cluster, `ray "
            "start --object-store-memory`), or have fewer responses in an iteration"
        )
    if getattr(cause, "errno", None) == errno.ENOSPC:
        return "\nmake room, and run the same command again to go on"
    return ""


def _may_be_of_a_host(cause: BaseException) -> bool:
    """Whether it is what processes say whose counterpart is gone."""
    classes = {kind.__name__ for kind in type(cause).__mro__}
    return bool(classes & _OF_HOSTS) or bool(_OF_COLLECTIVES.search(str(cause)))


def _lost(missing: Callable[[float], list[str]], wait_s: float) -> list[str]:
    try:
        return missing(wait_s)
    except Exception:  # of a Ray that is itself going: what is told is the error before it
        return []
