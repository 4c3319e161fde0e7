"""Reward functions that the tests of scoring name: modules in a folder, as people bring them."""

from __future__ import annotations

import os
import time
from typing import Any


def length(*, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def only_questions(*, prompts: list[list[dict[str, str]]], **_: Any) -> list[float | None]:
    return [1.0 if messages[-1]["content"].endswith("?") else None for messages in prompts]


def tools_and_calls(
    prompts: list[list[dict[str, Any]]],
    completions: list[str],
    references: list[str | None],
    sources: list[str],
    finished: list[bool],
    tools: list[list[dict[str, Any]] | None],
) -> list[float]:
    calls = [sum(len(message.get("tool_calls", [])) for message in asked) for asked in prompts]
    return [10.0 * len(schemas or []) + n for schemas, n in zip(tools, calls, strict=True)]


def only_the_five(
    prompts: list[list[dict[str, Any]]],
    completions: list[str],
    references: list[str | None],
    sources: list[str],
    finished: list[bool],
) -> list[float]:
    return [1.0] * len(completions)


def one_short(*, completions: list[str], **_: Any) -> list[float]:
    return [0.0] * (len(completions) - 1)


def not_a_number(*, completions: list[str], **_: Any) -> list[float]:
    return [float("nan") if text == "b" else 2.0 for text in completions]


def never(*, completions: list[str], **_: Any) -> list[float]:
    return [float("inf")] * len(completions)


def raises(**_: Any) -> list[float]:
    raise KeyError("no such column")


def sleeps(*, completions: list[str], **_: Any) -> list[float]:
    time.sleep(60)
    return [0.0] * len(completions)


def ends_the_process(**_: Any) -> list[float]:
    os._exit(3)


def coarse(*, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 5 == 0) for text in completions]
