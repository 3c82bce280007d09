"""The server that a command talks to: somebody's, or one of its own, started when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Self

from captory_client.backoff import Backoff
from captory_client.client import Client
from captory_client.interrupts import unless
from captory_client.local_server import LocalServer
from captory_proto.v1 import captory_pb2 as pb

# A server that was never there is more likely a wrong address than one that is being restarted.
FIRST_CONTACT = Backoff(total_s=5.0)


class Workshop:
    """Use it as an asynchronous context manager; what `client` started ends with it.

    `stop`, when it is set while a server starts, cancels who waits for it: nothing is in flight yet.
    """

    def __init__(
        self,
        address: str | None,
        server_options: Sequence[str] = (),
        *,
        stop: asyncio.Event | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._address = address
        self._server_options = server_options
        self._stop = stop or asyncio.Event()
        self._notify = notify
        self._client: Client | None = None
        self._info: pb.ServerInfo | None = None

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def client(self) -> Client:
        """A client of a server that serves. Raises `ServerLost` when there is none to be had."""
        if self._client is None:
            client = await self._stack.enter_async_context(await self._connect())
            await client.wait_ready(FIRST_CONTACT)
            self._client = client
        return self._client

    async def info(self) -> pb.ServerInfo:
        """What the server says of itself."""
        if self._info is None:
            client = await self.client()
            self._info = await client.server_info()
        return self._info

    async def _connect(self) -> Client:
        if self._address is not None:
            return Client(self._address)
        server = LocalServer(self._server_options)
        if server.starts_vllm and self._notify:
            self._notify("starting a vLLM first; that takes a minute or more")
        await unless(self._stop, self._stack.enter_async_context(server))
        return Client(server.address, on_lost=server.revive)
