"""Room counted in units, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets work in while its units fit. Work larger than the whole room goes in alone, so nobody waits for ever."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Units taken now."""
        return self._used

    @property
    def num_waiting(self) -> int:
        """Who stands in line."""
        return len(self._waiting)

    def try_enter(self, units: int) -> bool:
        """Take `units` if they fit and nobody waits."""
        if self._waiting or not self._fits(units):
            return False
        self._used += units
        return True

    async def enter(self, units: int) -> None:
        """Wait for `units`; a cancelled wait takes nothing."""
        if self.try_enter(units):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((units, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self._give_up(units, turn)
            raise

    def leave(self, units: int) -> None:
        """Give `units` back and let in whoever fits now, in order."""
        self._used -= units
        while self._waiting and self._fits(self._waiting[0][0]):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._used += wanted
                turn.set_result(None)

    @asynccontextmanager
    async def held(self, units: int) -> AsyncIterator[None]:
        """Hold `units` for as long as the block runs."""
        await self.enter(units)
        try:
            yield
        finally:
            self.leave(units)

    def _fits(self, units: int) -> bool:
        return self._used == 0 or self._used + units <= self._room

    def _give_up(self, units: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():  # let in and cancelled in the same breath
            self.leave(units)
        elif (units, turn) in self._waiting:
            self._waiting.remove((units, turn))
            self.leave(0)
