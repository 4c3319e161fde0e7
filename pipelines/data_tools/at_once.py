"""Work on many items, several at a time, that a signal ends between two of its waits."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def at_once(
    items: Iterable[T], total: int, number: int, do: Callable[[T], Awaitable[None]]
) -> None:
    """`do` each item, `number` of them at a time. The first exception of one ends all.

    KeyboardInterrupt: by SIGINT or SIGTERM.
    """
    try:
        asyncio.run(_work(items, total, number, do))
    except asyncio.CancelledError:  # by a signal, see `_work`
        raise KeyboardInterrupt from None
    except ExceptionGroup as errors:  # the first ended the others
        raise errors.exceptions[0] from None


async def _work(
    items: Iterable[T], total: int, number: int, do: Callable[[T], Awaitable[None]]
) -> None:
    # As an exception, an interrupt would come up in the middle of anything; cancelled tasks end
    # where they wait.
    main_task = asyncio.current_task()
    assert main_task is not None
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, main_task.cancel)
    # One iterator for all workers: each item is read when it is needed, and given out once.
    queue = iter(items)
    with tqdm(total=total, unit=" items", disable=None) as bar:

        async def worker() -> None:
            for item in queue:
                await do(item)
                bar.update()

        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(worker())
