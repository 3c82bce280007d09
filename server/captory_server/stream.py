"""One `Synthesize` call: an item is read when there is room, runs in a task of its own, and its results go out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from captory_engine.errors import CaptoryError, InvalidInput, Unavailable
from captory_engine.items import Done, Item
from captory_proto.v1 import captory_pb2 as pb
from captory_server.admission import Admission, num_input_bytes
from captory_server.codec import read_item
from captory_server.fields import check_id
from captory_server.gate import Gate
from captory_server.logs import event
from captory_server.outbox import Outbox, Said
from captory_server.ports import Pipeline
from captory_server.results import Told, is_end
from captory_server.status import status_of

MAX_BATCH_ITEMS = 1024
MAX_BATCH_BYTES = 256 << 10

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Open:
    """An item from its arrival until its end is written."""

    units: int = 0  # of room
    task: asyncio.Task[None] | None = None  # none for an item that is refused at sight
    cancelled: bool = False
    ended: bool = False  # its end is on its way


class ItemStream:
    """Items in, results out, by id.

    What waits to be written is bounded by the images of the open items: an item is open until its `ItemDone` is
    written, and no more than about `max_images` are open. A caller that does not read keeps its own room only, for
    the engine's is given back as soon as an item is done. Of input images, about `max_input_bytes` are held.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        admission: Admission,
        draining: asyncio.Event,
        max_images: int,
        max_input_bytes: int,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self._pipeline = pipeline
        self._admission = admission
        self._draining = draining
        self._room = Gate(max_images)
        self._input_room = Gate(max_input_bytes)
        self._open: dict[str, _Open] = {}  # by the item's id
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox = Outbox(max_batch_bytes)

    async def responses(
        self, requests: AsyncIterator[pb.SynthesizeRequest]
    ) -> AsyncGenerator[pb.SynthesizeResponse, None]:
        """Answer `requests` until they end and every item is done, or until the server drains."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while await self._outbox.filled():
                message, said = self._outbox.take()
                yield message
                self._written(said)
            await reader
        finally:
            await _cancel([reader, *self._tasks])

    async def _read(self, requests: AsyncIterator[pb.SynthesizeRequest]) -> None:
        drain = asyncio.create_task(self._draining.wait())
        try:
            while (request := await _next(requests, drain)) is not None:
                messages = deque(self._take(request))
                del request  # from here on each item alone holds its image
                while messages and not self._draining.is_set():
                    admitted = self._start(messages.popleft())
                    if admitted is not None:
                        await admitted.wait()
            await asyncio.gather(*self._tasks)
            if self._draining.is_set():
                raise Unavailable("DRAINING", "the server is shutting down; send what is not done to another")
        finally:
            drain.cancel()
            self._outbox.close()

    def _take(self, request: pb.SynthesizeRequest) -> Iterable[pb.Item]:
        """Do what is asked but for the items, which come back."""
        self._outbox.batches |= request.wants_batches
        match request.WhichOneof("request"):
            case "item":
                return [request.item]
            case "batch" if 0 < len(request.batch.items) <= MAX_BATCH_ITEMS:
                return request.batch.items
            case "batch":
                raise InvalidInput("BATCH_SIZE", f"a batch holds 1 to {MAX_BATCH_ITEMS} items", field="batch")
            case "cancel_item_id":
                self._cancel_item(request.cancel_item_id)
                return []
            case _:
                raise InvalidInput("EMPTY_REQUEST", "a request holds items or a cancel_item_id", field="request")

    def _start(self, message: pb.Item) -> asyncio.Event | None:
        """Begin an item; the event says that it has its room. None for one that is refused at sight.

        An item that cannot be named ends the call: no answer could be told from another item's.
        """
        item_id = check_id("item.id", message.id)
        if item_id in self._open:
            raise InvalidInput("DUPLICATE_ID", "two items in flight have the same id", field="item.id")
        self._open[item_id] = opened = _Open()
        try:
            item = read_item(message, self._pipeline.info)
        except CaptoryError as error:
            self._refuse(item_id, opened, error)
            return None
        admitted = asyncio.Event()
        opened.task = asyncio.create_task(self._run(item, opened, admitted))
        self._tasks.add(opened.task)
        opened.task.add_done_callback(self._tasks.discard)
        return admitted

    def _cancel_item(self, item_id: str) -> None:
        """Stop an item; one whose end is on its way is left to it, for it has one end only."""
        opened = self._open.get(item_id)
        if opened is not None and opened.task is not None and not opened.ended and not opened.cancelled:
            opened.cancelled = True
            opened.task.cancel()

    async def _run(self, item: Item, opened: _Open, admitted: asyncio.Event) -> None:
        """One item, from its admission to its end; its failure is its own."""
        try:
            await self._room.enter(len(item.samples))
            opened.units = len(item.samples)
            async with self._input_room.held(num_input_bytes(item)), self._admission.waiting(item) as ready:
                admitted.set()
                await self._pipeline.live(ready, lambda happened: self._tell(item.id, opened, happened))
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not opened.cancelled:
                raise
            self._refuse(item.id, opened, error)
        finally:
            admitted.set()

    def _tell(self, item_id: str, opened: _Open, told: Told) -> None:
        opened.ended = is_end(told)
        self._outbox.put(item_id, told)
        if isinstance(told, Done):
            event(log, logging.INFO, "item_done", id=item_id, images=told.num_images)

    def _refuse(self, item_id: str, opened: _Open, error: BaseException) -> None:
        status = status_of(error)
        event(log, logging.INFO, "item_failed", id=item_id, code=status.code, why=status.message)
        if not opened.ended:
            self._tell(item_id, opened, status)

    def _written(self, said: list[Said]) -> None:
        for item_id, told in said:
            if is_end(told):
                self._room.leave(self._open.pop(item_id).units)


async def _next(
    requests: AsyncIterator[pb.SynthesizeRequest], drain: asyncio.Task[Literal[True]]
) -> pb.SynthesizeRequest | None:
    """The next request; None when there is none to come or to be taken any more."""
    arrival = asyncio.ensure_future(anext(requests, None))
    waited: set[asyncio.Future[Any]] = {arrival, drain}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        return arrival.result() if arrival.done() else None
    finally:
        arrival.cancel()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
