"""The asynchronous client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from captory_client.backoff import Backoff, Patience
from captory_client.errors import ClientError, ServerLost, explain
from captory_client.synthesis import Items, Lost, Sleep, Synthesis, Window
from captory_proto.v1 import captory_pb2 as pb
from captory_proto.v1 import captory_pb2_grpc

if TYPE_CHECKING:
    from captory_proto.v1.captory_pb2_grpc import CaptoryAsyncStub

CAPTORY = pb.DESCRIPTOR.services_by_name["Captory"].full_name
MAX_MESSAGE_BYTES = 64 << 20
MAX_IN_FLIGHT = 64
MAX_IN_FLIGHT_BYTES = 128 << 20
READY_TIMEOUT_S = 120.0  # models are loaded in it
Answer = TypeVar("Answer")


class Client:
    """Talks to one server at `address` ("HOST:PORT" or "unix:PATH"). Use it as an asynchronous context manager.

    `on_lost` is awaited when a stream's connection breaks, before the next attempt.
    """

    def __init__(
        self,
        address: str,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
        backoff: Backoff | None = None,
        sleep: Sleep = asyncio.sleep,
        on_lost: Lost | None = None,
    ) -> None:
        self.address = address
        self._window = Window(max_in_flight, max_in_flight_bytes)
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._on_lost = on_lost

    async def __aenter__(self) -> Self:
        self._channel = aio.insecure_channel(self.address, options=_OPTIONS)
        self._stub: CaptoryAsyncStub = captory_pb2_grpc.CaptoryStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    def synthesize(self, items: Items) -> AsyncGenerator[pb.SynthesizeResponse, None]:
        """Items in, results out in any order, each with its `item_id`; each item ends with one `done`.

        Ids must match [A-Za-z0-9_-]{1,64} and be unique among the items in flight. A broken connection is opened
        again and what was not done is sent again. Raises `ServerLost` when the server stays away, and `ClientError`
        when it refuses the call.
        """
        synthesis = Synthesis(self._stub.Synthesize, self._window, self._backoff, self._sleep, self._on_lost)
        return synthesis.results(items)

    async def caption(
        self, image: bytes, *, length: str = "short", deadline_s: float | None = None
    ) -> pb.CaptionResult:
        """The caption of an encoded image; `length` is "short" or "long"."""
        request = pb.CaptionRequest(image=image, length=length)
        response = await _explained(self._stub.Caption(request, timeout=deadline_s))
        return response.caption

    async def prompt(self, caption: str, *, deadline_s: float | None = None, **fields: Any) -> list[pb.PromptResult]:
        """The prompts of a caption. `fields` are those of `PromptRequest`: class_name, mode, attributes, n, seed."""
        request = pb.PromptRequest(caption=caption, **fields)
        response = await _explained(self._stub.Prompt(request, timeout=deadline_s))
        return list(response.prompts)

    async def generate(
        self, prompt: str, *, deadline_s: float | None = None, **parameters: Any
    ) -> list[pb.ImageResult]:
        """The images of a prompt. `parameters` are those of `Parameters`: n, steps, guidance_scale, seed, …"""
        request = pb.GenerateRequest(prompt=prompt, parameters=pb.Parameters(**parameters))
        response = await _explained(self._stub.Generate(request, timeout=deadline_s))
        return list(response.images)

    async def server_info(self, *, deadline_s: float | None = None) -> pb.ServerInfo:
        """What the server runs, its defaults and its limits."""
        return await _explained(self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=deadline_s))

    async def wait_ready(self, backoff: Backoff | None = None, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Come back when the server serves.

        Raises `ServerLost` after the back-off's total without a connection, or after `timeout_s` in which the server
        was there and did not serve, and `ClientError` for a server that is not ours.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._outwait(Patience(backoff or self._backoff))
        except TimeoutError:
            raise ServerLost(f"the server at {self.address} did not begin to serve within {timeout_s:g} s") from None

    async def _outwait(self, patience: Patience) -> None:
        while True:
            try:
                return await self._watch_health()
            except ServerLost:
                delay_s = patience.next_delay_s()
                if delay_s is None:
                    raise
                await self._sleep(delay_s)

    async def _watch_health(self) -> None:
        """Come back when the server says that it serves."""
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=CAPTORY))
        try:
            async for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                if answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
                    raise ClientError(f"the server at {self.address} is not Captory's", code="UNIMPLEMENTED")
        except aio.AioRpcError as error:
            raise explain(error) from error
        finally:
            watch.cancel()
        raise ServerLost(f"the server at {self.address} went away before it served")


async def _explained(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except aio.AioRpcError as error:
        raise explain(error) from error


_UNARY = [{"service": CAPTORY, "method": name} for name in ("Caption", "Prompt", "Generate", "GetServerInfo")]
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": [grpc.StatusCode.UNAVAILABLE.name],
}
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": _UNARY, "retryPolicy": _RETRY}]})),
]
