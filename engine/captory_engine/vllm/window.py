"""How many requests are under way at once, and who is next: interactive work first, each class in order of coming."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from captory_engine.items import WorkClass


class Window:
    """`num_places` at once. For one event loop."""

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting = {
            work_class: deque[asyncio.Future[None]]() for work_class in (WorkClass.INTERACTIVE, WorkClass.BULK)
        }

    @asynccontextmanager
    async def place(self, work_class: WorkClass) -> AsyncIterator[None]:
        """Wait for a place, and keep it until the block is left."""
        await self._enter(work_class)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, work_class: WorkClass) -> None:
        if self._num_free:
            self._num_free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[work_class].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # a place was given to who is leaving
                self._leave()
            raise

    def _leave(self) -> None:
        """Hand the place to the next who still waits."""
        for waiting in self._waiting.values():
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._num_free += 1
