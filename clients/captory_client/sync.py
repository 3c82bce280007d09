"""The client for code that blocks: the asynchronous one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, Self, TypeVar

from captory_client import client
from captory_proto.v1 import captory_pb2 as pb

Answer = TypeVar("Answer")
_END = object()


class Client:
    """As `captory_client.client.Client`, with plain functions and iterators. Use it as a context manager."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = client.Client(address, **options)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="captory-client", daemon=True)
        self._thread.start()
        self._wait(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def synthesize(self, items: Iterable[pb.Item]) -> Iterator[pb.SynthesizeResponse]:
        """Items in, results out in any order. Leaving the iterator cancels what is in flight."""
        results = self._client.synthesize(items)
        try:
            while (result := self._wait(_next(results))) is not _END:
                yield result
        finally:
            self._wait(results.aclose())

    def caption(self, image: bytes, *, length: str = "short", deadline_s: float | None = None) -> pb.CaptionResult:
        """The caption of an encoded image; `length` is "short" or "long"."""
        return self._wait(self._client.caption(image, length=length, deadline_s=deadline_s))

    def prompt(self, caption: str, *, deadline_s: float | None = None, **fields: Any) -> list[pb.PromptResult]:
        """The prompts of a caption. `fields` are those of `PromptRequest`: class_name, mode, attributes, n, seed."""
        return self._wait(self._client.prompt(caption, deadline_s=deadline_s, **fields))

    def generate(self, prompt: str, *, deadline_s: float | None = None, **parameters: Any) -> list[pb.ImageResult]:
        """The images of a prompt. `parameters` are those of `Parameters`: n, steps, guidance_scale, seed, …"""
        return self._wait(self._client.generate(prompt, deadline_s=deadline_s, **parameters))

    def server_info(self, *, deadline_s: float | None = None) -> pb.ServerInfo:
        """What the server runs, its defaults and its limits."""
        return self._wait(self._client.server_info(deadline_s=deadline_s))

    def wait_ready(self) -> None:
        """Come back when the server serves."""
        self._wait(self._client.wait_ready())

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _next(results: Any) -> Any:
    return await anext(results, _END)
