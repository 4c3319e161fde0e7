"""Programs of models as rewards: right and wrong ones, and those that want the reward without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayward.data.verifiable import confined
from rayward.data.verifiable.programs import checks_of, code, program_of

ROOT = Path(__file__).parents[2]

try:
    confined.check()
except confined.NotConfinedError as refused:
    pytest.skip(f"no user namespaces here: {refused}", allow_module_level=True)

MBPP = "assert add(2, 3) == 5\nassert add(-1, 1) == 0\nassert add(0, 0) == 0"
SUM = json.dumps({"inputs": ["1 2\n", "10 -4\n"], "outputs": ["3\n", "6\n"]})


def score(program: str, tests: str | None = MBPP) -> float | None:
    return code(completions=[f"Here:\n```python\n{program}\n```\n"], references=[tests])[0]


def test_right_programs_pass_and_wrong_ones_do_not() -> None:
    assert score("def add(a, b):\n    print('noise')\n    return a + b") == 1.0
    assert score("def add(a, b):\n    return a - b") == 0.0
    assert score("def add(a, b)\n    return a + b") == 0.0
    assert score("a, b = map(int, input().split())\nprint(a + b)", SUM) == 1.0
    assert score("print(3)", SUM) == 0.0
    assert code(completions=["def add(a, b): return a + b"], references=[MBPP]) == [1.0]
    thought = "<think>```python\nraise\n```</think>```py\nadd = lambda a, b: a + b\n```"
    assert code(completions=[thought, ""], references=[MBPP, MBPP]) == [1.0, 0.0]


def test_tests_that_cannot_be_held_against_a_program_safely_give_no_score() -> None:
    loop = "for x in (1, 2):\n    assert add(x, 0) == x"
    for tests in (None, "", "no tests", loop, "assert x < 3"):
        assert score("def add(a, b): return a + b", tests) is None
    assert score("def add(a, b): return a + b", '{"inputs": [1], "outputs": ["1"]}') is None
    listed = json.dumps(["assert math.isclose(half(3), 1.5)", "import math", "assert not half(0)"])
    assert score("def half(x): return x / 2", listed) == 1.0
    assert score("def half(x): return x", listed) == 0.0
    made = checks_of("assert [1] == f() ")
    assert made and made.calls[0].text == "f()"


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "class All:\n    def __eq__(self, other): return True\n    __bool__ = lambda self: True\n"
        "    __repr__ = lambda self: 'True'\nadd = lambda a, b: All()",
        "import builtins\nbuiltins.repr = lambda x: '5'\nadd = lambda a, b: 0",
        'import json, os\njson.dumps = lambda x: \'["5", "0", "0", "0"]\'\nadd = lambda a, b: 5',
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'[\"5\"]')\n"
        "    except OSError: pass\nos._exit(0)",
        "import gc\nadd = lambda a, b: [o for o in gc.get_objects() if isinstance(o, list)]",
        "add = lambda a, b: '5'",
        "def add(a, b): return '(' * 100000",
        "raise SystemExit",
        "\0",
        "",
    ],
)
def test_tricks_are_worth_nothing(program: str) -> None:
    assert score(program) == 0.0


def test_nothing_of_the_machine_is_reached(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("found")
    os.environ["RAYWARD_TEST_SECRET"] = "found"
    look = f"""
import os, socket, subprocess
print("RAYWARD_TEST_SECRET" in os.environ)
for path in ({str(secret)!r}, {str(ROOT)!r}, "/proc/1", "/etc/passwd"):
    print(os.path.exists(path))
for what in (
    lambda: socket.create_connection(("127.0.0.1", 22), 1),
    lambda: socket.create_connection(("192.0.2.1", 80), 1),
    lambda: open("/usr/new", "w"),
    lambda: os.kill(1, 9) or os.unshare,
    lambda: open("/work/large", "wb").write(b"x" * (32 << 20)),
    lambda: bytearray(3 << 30),
):
    try:
        what()
        print("done")
    except (OSError, MemoryError, AttributeError) as error:
        print(type(error).__name__)
"""
    ended = confined.run(look)
    del os.environ["RAYWARD_TEST_SECRET"]
    told = ended.out.split()
    assert told[:5] == ["False"] * 5, ended
    assert "done" not in told and len(told) == 11, ended
    assert not Path("/usr/new").exists()


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import signal\nfor n in (2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_what_does_not_end_is_ended_with_all_its_processes(program: str) -> None:
    started = time.monotonic()
    marked = f"# mark-{os.getpid()}\n{program}"
    assert confined.run(marked, seconds=1).status is None
    assert time.monotonic() - started < 1 + confined.START_S + 3
    # The kernel ends them with the first one of their namespace, one by one.
    deadline = time.monotonic() + 10
    while any(b"/work/program.py" in _command(entry) for entry in Path("/proc").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_processes_have_a_limit_whoever_we_are() -> None:
    many = (
        "import os, time\nn = 0\n"
        "try:\n    while n < 500:\n"
        "        if not os.fork():\n            time.sleep(20)\n        n += 1\n"
        "except OSError: pass\nprint(n)"
    )
    ended = confined.run(many, seconds=10)
    assert ended.status == 0 and 0 < int(ended.out) < 40


def test_a_child_that_goes_its_own_way_ends_with_the_program() -> None:
    left = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('over')"
    started = time.monotonic()
    assert confined.run(left) == confined.Ended(0, "over\n")
    assert time.monotonic() - started < 8


def test_where_programs_cannot_be_confined_nothing_starts() -> None:
    # A process that may make no namespaces, as in many containers.
    script = (
        "import ctypes, pathlib\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.unshare(0x10000000) == 0\n"
        "pathlib.Path('/proc/self/uid_map').write_text('0 %d 1' % OUTER)\n"
        "pathlib.Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        "from rayward.data.verifiable import confined, needs, programs\n"
        "try:\n    needs.check('rayward.data.verifiable.programs:code')\n"
        "except RuntimeError as error:\n    print(error)\n"
        "try:\n    programs.code(completions=['print(1)'], references=['assert f() == 1'])\n"
        "except confined.NotConfinedError:\n    print('nothing was run')\n"
    ).replace("OUTER", str(os.getuid()))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "cannot be run safely here" in done.stdout, done
    assert "source of kind http" in done.stdout and "nothing was run" in done.stdout


def test_the_last_block_is_the_program() -> None:
    assert program_of("```py\na\n```\nBetter:\n```python\nb\n```") == "b\n"
    assert program_of("a = 1") == "a = 1"
