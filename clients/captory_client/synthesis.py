"""Items to results, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from grpc import aio

from captory_client.backoff import Backoff, Patience
from captory_client.errors import ClientError, ServerLost, explain
from captory_proto.v1 import captory_pb2 as pb

Items = AsyncIterable[pb.Item] | Iterable[pb.Item]
OpenCall = Callable[[], "aio.StreamStreamCall[pb.SynthesizeRequest, pb.SynthesizeResponse]"]
Sleep = Callable[[float], Awaitable[object]]
Lost = Callable[[], Awaitable[None]]

# Of small items in one message; a message costs more than such an item.
MAX_BATCH_ITEMS = 64
MAX_BATCH_BYTES = 32 << 10


class Window(NamedTuple):
    """How much may be in flight: items, and about how many bytes of them (one larger item goes alone)."""

    max_items: int
    max_bytes: int


class _Pending(NamedTuple):
    """An item that is not done."""

    item: pb.Item
    num_bytes: int


class Synthesis:
    """One pass over some items. At most a `window` of them is open; each ends with one `ItemDone`.

    When the connection breaks, what is not done is sent again, and what had arrived before is not given out twice.
    """

    def __init__(
        self, open_call: OpenCall, window: Window, backoff: Backoff, sleep: Sleep, on_lost: Lost | None
    ) -> None:
        self._open_call = open_call
        self._patience = Patience(backoff)
        self._sleep = sleep
        self._on_lost = on_lost
        self._room = asyncio.Semaphore(window.max_items)
        self._max_bytes = window.max_bytes
        self._num_bytes = 0
        self._fewer = asyncio.Event()  # bytes than before
        self._pending: dict[str, _Pending] = {}
        self._arrived: dict[str, set[tuple[object, ...]]] = {}
        self._exhausted = False
        self._unsent: deque[_Pending] = deque()
        self._sendable = asyncio.Event()  # there is something unsent, or there will be nothing more
        self._knows_batches = False  # the server, as it has shown by sending one

    async def results(self, items: Items) -> AsyncGenerator[pb.SynthesizeResponse, None]:
        """Results as they come. An error of `items` is raised after the results of what came before it."""
        feeder = asyncio.create_task(self._feed(_iterate(items)))
        try:
            while not (self._exhausted and not self._pending):
                async with aclosing(self._connection()) as responses:
                    async for response in responses:
                        yield response
            await feeder
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    async def _feed(self, items: AsyncIterator[pb.Item]) -> None:
        """Take items while there is room for them; it goes on whatever becomes of the connection."""
        try:
            while True:
                await self._room.acquire()
                item = await anext(items)
                if item.id in self._pending:
                    raise ValueError(f"two items in flight have the id {item.id!r}")
                pending = _Pending(item, item.ByteSize())
                await self._make_room(pending.num_bytes)
                self._pending[item.id] = pending
                self._arrived[item.id] = set()
                self._unsent.append(pending)
                self._sendable.set()
        except StopAsyncIteration:
            return
        finally:
            self._exhausted = True
            self._sendable.set()

    async def _make_room(self, num_bytes: int) -> None:
        while self._num_bytes and self._num_bytes + num_bytes > self._max_bytes:
            self._fewer.clear()
            await self._fewer.wait()
        self._num_bytes += num_bytes

    async def _connection(self) -> AsyncGenerator[pb.SynthesizeResponse, None]:
        """What one connection brings, until all is done or it breaks; then a pause, or the end of patience."""
        call = self._open_call()
        writer = asyncio.create_task(self._write(call))
        try:
            async for message in call:
                self._patience.renew()
                for response in self._unpack(message):
                    if self._is_new(response):
                        yield response
                    self._note_done(response)
            if self._pending:
                await self._pause(ServerLost("the server ended the stream too early"))
        except aio.AioRpcError as error:
            await self._pause(explain(error))
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        """Send what is pending, then what comes."""
        self._knows_batches = False  # it may be another server
        self._unsent = deque(self._pending.values())
        while await self._something_to_send():
            await call.write(self._next_request())
        await call.done_writing()

    async def _something_to_send(self) -> bool:
        while not self._unsent and not self._exhausted:
            self._sendable.clear()
            await self._sendable.wait()
        return bool(self._unsent)

    def _next_request(self) -> pb.SynthesizeRequest:
        """One item, or all the small ones that wait."""
        first = self._unsent.popleft()
        items, num_bytes = [first.item], first.num_bytes
        while self._knows_batches and self._unsent and len(items) < MAX_BATCH_ITEMS:
            num_bytes += self._unsent[0].num_bytes
            if num_bytes > MAX_BATCH_BYTES:
                break
            items.append(self._unsent.popleft().item)
        if len(items) == 1:
            return pb.SynthesizeRequest(item=first.item, wants_batches=True)
        return pb.SynthesizeRequest(batch=pb.ItemBatch(items=items), wants_batches=True)

    def _unpack(self, message: pb.SynthesizeResponse) -> Iterable[pb.SynthesizeResponse]:
        if message.WhichOneof("event") != "batch":
            return [message]
        self._knows_batches = True
        return map(_alone, message.batch.responses)

    def _is_new(self, response: pb.SynthesizeResponse) -> bool:
        arrived = self._arrived.get(response.item_id)
        mark = _mark(response)
        if arrived is None or mark in arrived:
            return False
        arrived.add(mark)
        return True

    def _note_done(self, response: pb.SynthesizeResponse) -> None:
        if response.WhichOneof("event") == "done" and (done := self._pending.pop(response.item_id, None)) is not None:
            del self._arrived[response.item_id]
            self._num_bytes -= done.num_bytes
            self._fewer.set()
            self._room.release()

    async def _pause(self, error: ClientError) -> None:
        if not isinstance(error, ServerLost):
            raise error
        delay_s = self._patience.next_delay_s()
        if delay_s is None:
            raise ServerLost(f"the server did not come back: {error}") from error
        if self._on_lost:
            await self._on_lost()
        await self._sleep(delay_s)


def _alone(response: pb.SynthesizeResponse) -> pb.SynthesizeResponse:
    """A message of its own: a part of a batch would hold the whole of it for as long as somebody keeps the part."""
    copy = pb.SynthesizeResponse()
    copy.CopyFrom(response)
    return copy


def _mark(response: pb.SynthesizeResponse) -> tuple[object, ...]:
    """What a response tells; the same again is a duplicate, and so is an image after its failure."""
    match response.WhichOneof("event"):
        case "image":
            made = response.image.provenance
            return "image", made.prompt_index, made.sample_index
        case "failure":
            return "image", response.failure.prompt_index, response.failure.sample_index
        case "caption":
            return "caption", response.caption.length
        case "prompt":
            return "prompt", response.prompt.prompt_index, response.prompt.text
        case event:
            return (event,)


async def _iterate(items: Items) -> AsyncGenerator[pb.Item, None]:
    """Any iterable as an asynchronous one; one that may block, as no sequence does, does so in a thread."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    if isinstance(items, Sequence):
        for item in items:
            yield item
        return
    iterator, end = iter(items), object()
    while (item_or_end := await asyncio.to_thread(next, iterator, end)) is not end:
        assert isinstance(item_or_end, pb.Item)
        yield item_or_end
