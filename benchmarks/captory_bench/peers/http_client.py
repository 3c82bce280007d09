"""The client of a peer that answers over HTTP: one POST a request, an image and its prompt back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.workload import Painting, Photo
from captory_bench.peers.contenders import Reply
from captory_bench.peers.wire import KEEP_ALIVE_S, PATH, painting_body, photo_body, read_reply

_PROBE = Painting("probe", "a mug", 1, 0)


@dataclass(frozen=True, slots=True)
class HttpRequests:
    """Requests to a server on this machine."""

    session: aiohttp.ClientSession

    async def paint(self, job: Painting) -> Reply:
        """Text to image. Raises `ArmFailed` for anything but an image."""
        return await self._post(job.id, painting_body(job))

    async def paint_photo(self, photo: Photo, steps: int) -> Reply:
        """Photograph to image. Raises `ArmFailed` for anything but an image."""
        return await self._post(photo.id, photo_body(photo, steps))

    async def greet(self) -> None:
        """Ask for the smallest image. Raises `ArmFailed` as long as there is none."""
        await self.paint(_PROBE)

    async def _post(self, key: str, body: Mapping[str, Any]) -> Reply:
        try:
            async with self.session.post(PATH, json=body) as response:
                content = await response.read()
                if not response.ok:
                    raise ArmFailed(f"{key}: HTTP {response.status}: {content[:200].decode(errors='replace')}")
                return Reply(*read_reply(content, response.headers))
        except aiohttp.ClientError as error:
            raise ArmFailed(f"{key}: {error}") from error


@asynccontextmanager
async def http_requests(port: int) -> AsyncIterator[HttpRequests]:
    """A client without limits of its own: neither on connections nor on time."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=timeout) as session:
        yield HttpRequests(session)
