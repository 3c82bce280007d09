"""Image codecs off the event loop.

What ends while the loop is busy is told to it at once: waking the loop for each small image costs it more than the
image costs a thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

NUM_THREADS = 2


class _Ended(NamedTuple):
    """A call's end, on its way to the loop."""

    future: asyncio.Future[Any]
    result: Any
    error: BaseException | None


class Codecs:
    """A few threads, for one event loop."""

    def __init__(self, num_threads: int = NUM_THREADS) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="captory-codec")
        self._ended: deque[_Ended] = deque()
        self._told = False  # whether the loop knows that there is something in `_ended`

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function` returns or raises, called in a thread. A caller that leaves stops only what has not begun."""
        future = self._loop.create_future()
        self._threads.submit(self._call, future, function, args)
        return await future

    def close(self) -> None:
        """Wait for the calls in flight, then end the threads."""
        self._threads.shutdown(wait=True)

    def _call(self, future: asyncio.Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """In a thread."""
        if future.cancelled():
            return
        try:
            self._ended.append(_Ended(future, function(*args), None))
        except BaseException as error:  # the caller's, whatever it is
            self._ended.append(_Ended(future, None, error))
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        """In the loop. The flag falls first, so that what ends from here on is told again."""
        self._told = False
        while self._ended:
            future, result, error = self._ended.popleft()
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
