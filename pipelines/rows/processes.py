"""One function over many arguments in processes of this machine, the results in order.

Processes of our own, not forks: a fork takes along the threads' locks of Ray and of tokenizers; and
not those of `multiprocessing`, which run the caller's script again. A process reads calls from its
standard input and writes results to its standard output, pickled.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from rayward.pipelines.run.errors import StageError


class Processes:
    """`count` processes that import `modules`, make a function once and call it often.

    They start at once, so that the imports, which take seconds, run beside what is done before
    `make`.
    """

    def __init__(self, count: int, modules: Sequence[str] = ()) -> None:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        # Before anything else, where modules are found: as here.
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        self._all = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            for _ in range(count)
        ]
        self._free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        # A thread for each: it waits for the pipes.
        self._threads = ThreadPoolExecutor(count)
        for process in self._all:
            _send(process, list(modules))
            self._free.put(process)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # Without an error they are idle, and end with their input; else they may be at work.
        for process in self._all:
            if error is not None:
                process.kill()
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):
                process.stdin.close()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.wait()
            assert process.stdout
            process.stdout.close()

    def make(self, make: Callable[..., Any], *arguments: Any) -> None:
        """Say how each process makes its function: `make(*arguments)`. Once, before `map`."""
        for process in self._all:
            _send(process, (make, arguments))

    def map(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The function's results, in the order of the calls, of which few are read ahead."""
        running: deque[Future[Any]] = deque()
        for call in calls:
            running.append(self._threads.submit(self._ask, call))
            # One more than there are processes, so that none waits while a result is used.
            if len(running) > 2 * len(self._all):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _ask(self, call: tuple[Any, ...]) -> Any:
        process = self._free.get()
        try:
            _send(process, call)
            assert process.stdout is not None
            failed, result = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise StageError(
                f"a process that tokenises ended (status {process.wait()}); if the machine's "
                "memory was full, data.processes: 1 takes less"
            ) from error
        finally:
            self._free.put(process)
        if failed:
            raise result
        return result


def _send(process: subprocess.Popen[bytes], message: Any) -> None:
    assert process.stdin is not None
    pickle.dump(message, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()


def serve() -> None:
    """What such a process does until its input ends."""
    calls = sys.stdin.buffer
    # Whatever prints goes to the terminal, not among the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for module in pickle.load(calls):
        importlib.import_module(module)
    try:
        make, arguments = pickle.load(calls)
    except EOFError:
        return
    function: Callable[..., Any] | None = None
    while True:
        try:
            call = pickle.load(calls)
        except EOFError:
            return
        try:
            # Made where its errors have a way back.
            function = function or make(*arguments)
            answer = (False, function(*call))
        except Exception as error:
            answer = (True, _portable(error))
        pickle.dump(answer, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be pickled and back."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
