"""`rayward.data.verifiable.programs:code`: whether the program in an answer passes its tests.

The reference holds the tests: asserts of the form `assert call == value` (MBPP), or
{"inputs": [...], "outputs": [...]} of texts that the program reads and prints (APPS). What is
expected never comes near the program: it makes the values of the calls, or prints, in a process
that is confined, and they are compared here. So ending early, objects that equal everything and
reading the tests are worth nothing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rayward.data.judging.thinking import without_thinking
from rayward.data.verifiable import confined

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
SECONDS = 10.0
"""For all tests of an answer."""
AT_ONCE = 4
LARGEST = 1 << 20
"""Characters of an answer, or of a value."""


@dataclass(frozen=True, slots=True)
class Call:
    """An expression, and the value that it should have."""

    text: str
    expected: Any


@dataclass(frozen=True, slots=True)
class Checks:
    """What a program is held against: calls after `setup`, or texts that it reads and prints."""

    calls: tuple[Call, ...] = ()
    setup: str = ""
    texts: tuple[tuple[str, str], ...] = ()


def code(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """The share of 1 or 0: 1 where the program of an answer passes all tests of the reference.

    None where there are no tests of a form that can be held against it safely.
    """
    tests = [None if reference is None else checks_of(reference) for reference in references]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_score, completions, tests))


def _score(answer: str, tests: Checks | None) -> float | None:
    if tests is None:
        return None
    return float(passes(program_of(answer), tests))


def program_of(answer: str) -> str:
    """The last fenced block, or else all of the answer."""
    text = without_thinking(answer[:LARGEST])[0]
    blocks = FENCED.findall(text)
    return blocks[-1] if blocks else text


def checks_of(reference: str) -> Checks | None:
    """The tests in a reference; None where there are none, or one is of another form."""
    try:
        given = json.loads(reference)
    except ValueError:
        return _asserts(reference)
    if isinstance(given, list) and given and all(isinstance(text, str) for text in given):
        return _asserts("\n".join(given))  # MBPP's test_list
    if not isinstance(given, dict):
        return None
    inputs, outputs = given.get("inputs"), given.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        return None
    if len(inputs) != len(outputs) or not all(isinstance(t, str) for t in (*inputs, *outputs)):
        return None
    return Checks(texts=tuple(zip(inputs, outputs, strict=True)))


def _asserts(text: str) -> Checks | None:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    setup = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    asserts = [node for node in body if isinstance(node, ast.Assert)]
    calls = [_call(node.test) for node in asserts]
    if not calls or None in calls or len(setup) + len(asserts) != len(body):
        return None
    return Checks(tuple(filter(None, calls)), "\n".join(map(ast.unparse, setup)))


def _call(test: ast.expr) -> Call | None:
    """The expression that an assert holds against a literal; None of another form."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return Call(f"bool({ast.unparse(test.operand)})", False)
    if isinstance(test, ast.Compare):
        if len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq | ast.Is):
            return None
        sides = (test.left, test.comparators[0])
        for expression, literal in (sides, sides[::-1]):
            try:
                return Call(ast.unparse(expression), ast.literal_eval(literal))
            except (ValueError, TypeError, MemoryError, RecursionError):
                continue
        return None
    return Call(f"bool({ast.unparse(test)})", True) if isinstance(test, ast.Call) else None


RUNNER = """
import json, os, sys
asked = json.loads(sys.stdin.buffer.read())
out = os.dup(1)
os.dup2(os.open("/dev/null", os.O_RDWR), 1)
os.dup2(1, 0)
space = {"__name__": "program", "__builtins__": __builtins__}
exec(compile(asked["program"], "program", "exec"), space)
exec(asked["setup"], space)
values = [repr(eval(call, space)) for call in asked["calls"]]
os.write(out, json.dumps(values).encode())
os._exit(0)
"""


def passes(program: str, tests: Checks) -> bool:
    """Whether a program passes all tests. NotConfinedError: it could not be run safely."""
    if "\0" in program or not program.strip():
        return False
    if tests.texts:
        return all(_prints(program, stdin, expected) for stdin, expected in tests.texts)
    asked = {"program": program, "setup": tests.setup, "calls": [c.text for c in tests.calls]}
    ended = confined.run(RUNNER, json.dumps(asked), SECONDS)
    try:
        values = json.loads(ended.out)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, list) or len(values) != len(tests.calls):
        return False
    pairs = zip(values, tests.calls, strict=True)
    return all(_equal(value, call.expected) for value, call in pairs)


def _equal(text: object, expected: Any) -> bool:
    """Whether what a program wrote is the text of a value that equals what is expected."""
    if not isinstance(text, str) or len(text) > LARGEST:
        return False
    try:
        return bool(ast.literal_eval(text) == expected)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _prints(program: str, stdin: str, expected: str) -> bool:
    ended = confined.run(program, stdin, SECONDS)
    return ended.status == 0 and ended.out.split() == expected.split()
