"""One `Synthesize` call: an item is read when there is room, runs in a task of its own, and its results go out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from captory_engine.errors import CaptoryError, InvalidInput, Unavailable
from captory_engine.items import Done, Item
from captory_proto.v1 import captory_pb2 as pb
from captory_server.admission import Admission, num_input_bytes
from captory_server.codec import read_item
from captory_server.fields import check_id
from captory_server.gate import Gate
from captory_server.logs import event
from captory_server.ports import Pipeline
from captory_server.results import write_event, write_refusal
from captory_server.status import status_of

log = logging.getLogger(__name__)


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
    ) -> None:
        self._pipeline = pipeline
        self._admission = admission
        self._draining = draining
        self._room = Gate(max_images)
        self._input_room = Gate(max_input_bytes)
        self._open: dict[str, int] = {}  # item id -> units of room
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        self._ended: set[str] = set()  # ids of tasks that have told their item's end
        self._outgoing: asyncio.Queue[pb.SynthesizeResponse | None] = asyncio.Queue()

    async def responses(
        self, requests: AsyncIterator[pb.SynthesizeRequest]
    ) -> AsyncGenerator[pb.SynthesizeResponse, None]:
        """Answer `requests` until they end and every item is done, or until the server drains."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (response := await self._outgoing.get()) is not None:
                yield response
                self._written(response)
            await reader
        finally:
            await _cancel([reader, *self._tasks.values()])

    async def _read(self, requests: AsyncIterator[pb.SynthesizeRequest]) -> None:
        try:
            while (request := await self._next(requests)) is not None:
                admitted = self._take(request)
                del request  # from here on the item alone holds its image
                if admitted is not None:
                    await admitted.wait()
            await asyncio.gather(*self._tasks.values())
            if self._draining.is_set():
                raise Unavailable("DRAINING", "the server is shutting down; send what is not done to another")
        finally:
            self._outgoing.put_nowait(None)

    async def _next(self, requests: AsyncIterator[pb.SynthesizeRequest]) -> pb.SynthesizeRequest | None:
        """The next request; None when there is none to come or to be taken any more."""
        arrival = asyncio.ensure_future(anext(requests, None))
        drain = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({arrival, drain}, return_when=asyncio.FIRST_COMPLETED)
            return arrival.result() if arrival.done() else None
        finally:
            arrival.cancel()
            drain.cancel()

    def _take(self, request: pb.SynthesizeRequest) -> asyncio.Event | None:
        """Do what is asked. Before the event that comes back, nothing further is to be read."""
        match request.WhichOneof("request"):
            case "item":
                return self._start(request.item)
            case "cancel_item_id":
                self._cancel_item(request.cancel_item_id)
                return None
            case _:
                raise InvalidInput("EMPTY_REQUEST", "a request holds an item or a cancel_item_id", field="request")

    def _start(self, message: pb.Item) -> asyncio.Event | None:
        """Begin an item; the event says that it has its room. None for one that is refused at sight.

        An item that cannot be named ends the call: no answer could be told from another item's.
        """
        item_id = check_id("item.id", message.id)
        if item_id in self._open:
            raise InvalidInput("DUPLICATE_ID", "two items in flight have the same id", field="item.id")
        self._open[item_id] = 0
        try:
            item = read_item(message, self._pipeline.info)
        except CaptoryError as error:
            self._refuse(item_id, error)
            return None
        admitted = asyncio.Event()
        self._tasks[item_id] = asyncio.create_task(self._run(item, admitted))
        return admitted

    def _cancel_item(self, item_id: str) -> None:
        """Stop an item; one whose end is on its way is left to it, for it has one end only."""
        if item_id in self._tasks and item_id not in self._ended | self._cancelled:
            self._cancelled.add(item_id)
            self._tasks[item_id].cancel()

    async def _run(self, item: Item, admitted: asyncio.Event) -> None:
        """One item, from its admission to its end; its failure is its own."""
        try:
            await self._make_room(item)
            async with self._input_room.held(num_input_bytes(item)), self._admission.waiting(item) as ready:
                admitted.set()
                await self._forward(ready)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and item.id not in self._cancelled:
                raise
            self._refuse(item.id, error)
        finally:
            del self._tasks[item.id]
            self._ended.discard(item.id)
            admitted.set()

    async def _make_room(self, item: Item) -> None:
        units = len(item.samples)
        await self._room.enter(units)
        self._open[item.id] = units

    async def _forward(self, item: Item) -> None:
        async with aclosing(self._pipeline.run(item)) as events:
            async for happened in events:
                self._outgoing.put_nowait(write_event(item.id, happened))
                if isinstance(happened, Done):
                    self._ended.add(item.id)
                    event(log, logging.INFO, "item_done", id=item.id, images=happened.num_images)

    def _refuse(self, item_id: str, error: BaseException) -> None:
        status = status_of(error)
        event(log, logging.INFO, "item_failed", id=item_id, code=status.code, why=status.message)
        if item_id not in self._ended:
            self._outgoing.put_nowait(write_refusal(item_id, status))

    def _written(self, response: pb.SynthesizeResponse) -> None:
        if response.WhichOneof("event") == "done":
            self._cancelled.discard(response.item_id)
            self._room.leave(self._open.pop(response.item_id))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
