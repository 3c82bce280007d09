"""Whether a Triton and its models answer: the connection says when it breaks, and only in doubt are they asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from captory_engine.errors import Unreachable
from captory_engine.sessions.options import TritonOptions
from captory_engine.sessions.triton_link import CHANNEL_OPTIONS, DOWN

PAUSE_S = 0.25  # before each question: what has just gone is not back yet
ANSWER_S = 2.0

_messages: Any = service_pb2  # made at run time
log = logging.getLogger(__name__)


class Watch:
    """Over one Triton and those models there that `names` tells; for one event loop."""

    def __init__(self, options: TritonOptions, names: Sequence[str]) -> None:
        self.names = names
        self._options = options
        self._channel = aio.insecure_channel(options.address, options=CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._there = asyncio.Event()
        self._doubts = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        """Wait for somebody to listen, and watch from then on. Raises `Unreachable` when the patience is at its end."""
        log.info("waiting for Triton at %s, for at most %g s", self._options.address, self._options.patience_s)
        try:
            async with asyncio.timeout(self._options.patience_s):
                await self._channel.channel_ready()
        except TimeoutError:
            raise Unreachable(DOWN, f"no Triton at {self._options.address} answers.") from None
        self._there.set()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._settle())]

    @property
    def answers(self) -> bool:
        """Whether the models are ready, as far as is known."""
        return self._there.is_set()

    def doubt(self) -> None:
        """A call was not answered: nobody is there until asked and answering."""
        if not self._closed:
            self._there.clear()
            self._doubts.set()

    async def back(self, within_s: float) -> bool:
        """Wait until all is there; False when that takes longer, or nobody watches any more."""
        try:
            async with asyncio.timeout(within_s):
                await self._there.wait()
        except TimeoutError:
            return False
        return not self._closed

    async def close(self) -> None:
        """Watch no more; who waits is told."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._there.set()
        await self._channel.close()

    async def _follow(self) -> None:
        """Keep the connection up, and ask whenever it changes."""
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.SHUTDOWN:
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)
            self._doubts.set()

    async def _settle(self) -> None:
        """Ask for the models when there is doubt, until they are ready."""
        while True:
            await self._doubts.wait()
            self._doubts.clear()
            if not await self._ready():
                self._there.clear()
                log.warning("Triton at %s does not answer for its models", self._options.address)
                while not await self._ready():
                    pass
                log.info("Triton at %s answers again", self._options.address)
            self._there.set()

    async def _ready(self) -> bool:
        """Whether all models are ready, asked after a pause."""
        await asyncio.sleep(PAUSE_S)
        asked = [_messages.ModelReadyRequest(name=name) for name in self.names]
        try:
            return all([(await self._stub.ModelReady(one, timeout=ANSWER_S)).ready for one in asked])
        except grpc.RpcError:
            return False
