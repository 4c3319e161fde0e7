"""From an exception, which may have crossed Ray, to what a person needs to read."""

from __future__ import annotations


def explain(error: BaseException) -> str:
    """In one paragraph: what says which stage, setting or file is at fault, else the innermost
    cause, with its kind where that helps.

    A ValueError is ours, and says more than what it was made of; of what Ray makes of one the class
    has another name.
    """
    cause: BaseException = error
    seen: set[int] = set()
    while id(cause) not in seen and type(cause).__name__ not in (
        "StageError",
        "ConfigError",
        "ValueError",
    ):
        seen.add(id(cause))
        inner = getattr(cause, "cause", None) or cause.__cause__
        if not isinstance(inner, BaseException):
            break
        cause = inner
    message = str(cause).strip() or "no message"
    if (
        isinstance(cause, ValueError | FileNotFoundError | TimeoutError)
        or type(cause).__name__ == "StageError"
    ):
        return message
    return f"{type(cause).__name__}: {message}\nRAYWARD_TRACEBACK=1 shows where it came from"
