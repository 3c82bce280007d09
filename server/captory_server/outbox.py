"""What waits to be written to one caller, one response a message or, to a caller that wants them, in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from captory_proto.v1 import captory_pb2 as pb
from captory_server.results import Told, write_response

LINGER_S = 0.005


class Said(NamedTuple):
    """One thing that is said of one item."""

    item_id: str
    told: Told


class Outbox:
    """First in, first out. The messages are made when they are written.

    A batch is due when its first response has waited `linger_s`, or when there will be no more; none is over
    `max_batch_bytes`, but for a single response that is.
    """

    def __init__(self, max_batch_bytes: int, linger_s: float = LINGER_S) -> None:
        self.batches = False  # whether the caller wants them
        self._max_batch_bytes = max_batch_bytes
        self._linger_s = linger_s
        self._waiting: deque[Said] = deque()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def put(self, item_id: str, told: Told) -> None:
        """Say something."""
        self._waiting.append(Said(item_id, told))
        if not self.batches:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger_s, self._due.set)

    def close(self) -> None:
        """There will be nothing more."""
        self._closed = True
        self._due.set()

    async def filled(self) -> bool:
        """Wait until something is due to be written; false when there will be nothing more."""
        while not self._due.is_set() or not (self._waiting or self._closed):
            self._due.clear()
            await self._due.wait()
        return bool(self._waiting)

    def take(self) -> tuple[pb.SynthesizeResponse, list[Said]]:
        """The next message, and what it says. There must be something to write."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._take_batch() if self.batches else self._take_one()

    def _take_one(self) -> tuple[pb.SynthesizeResponse, list[Said]]:
        message, said = pb.SynthesizeResponse(), self._waiting.popleft()
        write_response(message, said.item_id, said.told)
        return message, [said]

    def _take_batch(self) -> tuple[pb.SynthesizeResponse, list[Said]]:
        """All that waits, while it fits."""
        message, taken, num_bytes = pb.SynthesizeResponse(), list[Said](), 0
        responses = message.batch.responses
        while self._waiting:
            write_response(responses.add(), self._waiting[0].item_id, self._waiting[0].told)
            num_bytes += responses[-1].ByteSize()
            if taken and num_bytes > self._max_batch_bytes:
                del responses[-1]
                return message, taken  # the rest is due
            taken.append(self._waiting.popleft())
        if not self._closed:
            self._due.clear()
        return message, taken
