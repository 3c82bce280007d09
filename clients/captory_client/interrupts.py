"""Ctrl-C once drains, twice stops at once; SIGTERM is the same."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = Callable[[asyncio.Event], Coroutine[Any, Any, Result]]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptible(work: Work[Result], on_first: Callable[[], None]) -> Result:
    """Run `work(stop)` on an event loop. The first signal sets `stop`, the second cancels.

    Raises `KeyboardInterrupt` when it was cancelled.
    """
    return asyncio.run(_run(work, on_first))


async def _run(work: Work[Result], on_first: Callable[[], None]) -> Result:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.ensure_future(work(stop))

    def signalled() -> None:
        if stop.is_set():
            task.cancel()
        else:
            stop.set()
            on_first()

    for number in SIGNALS:
        loop.add_signal_handler(number, signalled)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns. Raises `CancelledError`, and cancels it, when `stop` is set first."""
    task, told = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise asyncio.CancelledError
        return task.result()
    finally:
        task.cancel()
        told.cancel()
        await asyncio.gather(task, told, return_exceptions=True)
