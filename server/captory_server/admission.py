"""Who may come in: an item's price, the room for it, and its deadline while it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from captory_engine.errors import Exhausted, Expired, InvalidInput
from captory_engine.items import Item, Stage
from captory_server.gate import Gate
from captory_server.pace import Pace
from captory_server.ports import Pipeline

RETRY_AFTER_S = 1.0


def price(item: Item, rounds: int) -> int:
    """What an item costs, in pixel steps: width x height x steps x images x rounds; one that paints nothing costs 1."""
    asked = item.parameters
    if asked.stop_after is not Stage.IMAGE:
        return 1
    return asked.width * asked.height * asked.steps * len(item.samples) * rounds


def num_input_bytes(item: Item) -> int:
    """What an item's encoded input image takes."""
    return len(item.image or b"")


class Admission:
    """Holds the room that admitted items take until they are done; `num_admitted` equals `num_released` when idle."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        max_item_price: int,
        max_queued_price: int,
        max_input_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rounds = pipeline.rounds
        self._max_item_price = max_item_price
        self._room = Gate(max_queued_price)
        self._input_room = Gate(max_input_bytes)
        self._places = Gate(pipeline.info.limits.max_items)
        self._pace = Pace(clock)
        self.num_admitted = 0
        self.num_released = 0

    @asynccontextmanager
    async def waiting(self, item: Item) -> AsyncIterator[Item]:
        """Wait for room, at most until the item's deadline; the item comes back with the time that it has left."""
        self._check(item)
        loop = asyncio.get_running_loop()
        arrival_s = loop.time()
        held: list[tuple[Gate, int]] = []
        try:
            await self._enter(item, held)
            with self._counted():
                yield _later(item, loop.time() - arrival_s)
        finally:
            for gate, units in held:
                gate.leave(units)

    @asynccontextmanager
    async def at_once(self, item: Item) -> AsyncIterator[Item]:
        """Take the item now or refuse it, also when it would not be done before its deadline."""
        self._check(item)
        units = self._price(item)
        if not self._room.try_enter(units):
            raise Exhausted("NO_ROOM", "the server is full", retry_after_s=RETRY_AFTER_S)
        try:
            with self._place(), self._paced(item), self._counted():
                yield item
        finally:
            self._room.leave(units)

    async def _enter(self, item: Item, held: list[tuple[Gate, int]]) -> None:
        """Take all that the item needs, one after another; `held` is what it has, whatever happens."""
        needs = (self._input_room, num_input_bytes(item)), (self._room, self._price(item)), (self._places, 1)
        try:
            async with asyncio.timeout(item.parameters.deadline_s):
                for gate, units in needs:
                    await gate.enter(units)
                    held.append((gate, units))
        except TimeoutError:
            raise Expired("DEADLINE", "the deadline passed before there was room") from None

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.try_enter(1):
            words = "the server holds all the items that it can"
            raise Exhausted("QUEUE_FULL", words, retry_after_s=RETRY_AFTER_S)
        try:
            yield
        finally:
            self._places.leave(1)

    @contextmanager
    def _paced(self, item: Item) -> Iterator[None]:
        """Refuse an item that would not be painted before its deadline; what paints nothing takes hardly any time."""
        units, deadline_s = self._price(item), item.parameters.deadline_s
        if item.parameters.stop_after is not Stage.IMAGE:
            yield
            return
        if deadline_s is not None and not self._pace.admits(units, deadline_s):
            raise Exhausted("TOO_LATE", "the server is too busy for this deadline", retry_after_s=RETRY_AFTER_S)
        with self._pace.holding(units, deadline_s):
            yield

    def _price(self, item: Item) -> int:
        return price(item, self._rounds(item))

    def _check(self, item: Item) -> None:
        if self._price(item) > self._max_item_price:
            raise InvalidInput(
                "TOO_EXPENSIVE",
                f"width x height x steps x images x rounds is {self._price(item)}, more than {self._max_item_price}",
                field="parameters",
            )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.num_admitted += 1
        try:
            yield
        finally:
            self.num_released += 1


def _later(item: Item, waited_s: float) -> Item:
    deadline_s = item.parameters.deadline_s
    if deadline_s is None:
        return item
    return replace(item, parameters=replace(item.parameters, deadline_s=max(0.0, deadline_s - waited_s)))
