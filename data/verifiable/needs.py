"""What some of these functions need of a machine: looked at before a run starts."""

from __future__ import annotations

import importlib.util

from rayward.data.verifiable import confined


def check(target: str) -> None:
    """RuntimeError, with what to do, where a function of this room cannot work here.

    `target`: MODULE:FUNCTION, of any module.
    """
    module = target.partition(":")[0]
    if module == "rayward.data.verifiable.programs":
        confined.check()
    if module == "rayward.data.verifiable.maths" and not importlib.util.find_spec("math_verify"):
        raise RuntimeError("it needs math-verify: pip install 'rayward[verify]', or math-verify")
