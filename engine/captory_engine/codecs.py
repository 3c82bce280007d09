"""Image codecs off the event loop.

What is asked in one turn of the loop goes to the threads together, and what ends while the loop is busy is told to it
together: for a small image, waking a thread or the loop costs more than the image.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

NUM_THREADS = 2


class _Asked(NamedTuple):
    """A call on its way to a thread."""

    future: asyncio.Future[Any]
    function: Callable[..., Any]
    args: tuple[Any, ...]


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
        self._num_threads = num_threads
        self._asked: deque[_Asked] = deque()
        self._ended: deque[_Ended] = deque()
        self._told = False  # whether the loop knows that there is something in `_ended`

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function` returns or raises, called in a thread. A caller that leaves stops only what has not begun."""
        future = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._hand_over)
        self._asked.append(_Asked(future, function, args))
        return await future

    def close(self) -> None:
        """Wait for the calls in flight, then end the threads."""
        self._threads.shutdown(wait=True)

    def _hand_over(self) -> None:
        """In the loop. The threads share what was asked: one that is slow holds up no other."""
        asked, self._asked = self._asked, deque()
        for _ in range(min(self._num_threads, len(asked))):
            self._threads.submit(self._work, asked)

    def _work(self, asked: deque[_Asked]) -> None:
        """In a thread, until nothing is left."""
        while True:
            try:
                future, function, args = asked.popleft()
            except IndexError:
                return
            if not future.cancelled():
                self._call(future, function, args)

    def _call(self, future: asyncio.Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """In a thread."""
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
