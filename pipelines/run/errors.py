"""What stops a stage, and from an exception, which may have crossed Ray, to what a person reads."""

from __future__ import annotations

from rayward.cluster.hosts import lost


class StageError(RuntimeError):
    """A stage cannot run; the message says what to do."""


# Compared by name: what Ray raises for a worker's ValueError is an instance of ValueError too, but
# is named RayTaskError(ValueError), and its message is a whole traceback. Its `cause` is the error.
_OURS = ("StageError", "ConfigError", "ValueError")


def explain(error: BaseException) -> str:
    """In one paragraph: what says which stage, setting or file is at fault, else the innermost
    cause, with its kind where that helps.

    A ValueError is ours, and says more than what it was made of; of what Ray makes of one the class
    has another name.
    """
    cause: BaseException = error
    seen: set[int] = set()  # a chain of causes may be a circle
    while id(cause) not in seen and type(cause).__name__ not in _OURS:
        seen.add(id(cause))
        # Ray keeps the worker's exception in `cause`, Python in `__cause__`.
        inner = getattr(cause, "cause", None) or cause.__cause__
        if not isinstance(inner, BaseException):
            break
        cause = inner
    message = str(cause).strip() or "no message"
    ours = type(cause).__name__ in _OURS
    if not ours and (gone := lost()):
        return (
            f"host {', '.join(gone)} is gone: Ray's head no longer hears of it, and what ran there "
            "is lost; when the cluster has room again, run the same command again to go on"
        )
    kinds = (ValueError, FileNotFoundError, TimeoutError)
    if isinstance(cause, kinds) or type(cause).__name__ == "StageError":
        return message
    return f"{type(cause).__name__}: {message}\nRAYWARD_TRACEBACK=1 shows where it came from"
