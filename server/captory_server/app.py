"""A server's life: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from captory_engine.errors import Unavailable
from captory_proto.v1 import captory_pb2 as pb
from captory_proto.v1 import captory_pb2_grpc
from captory_server.address import with_port
from captory_server.config import Settings
from captory_server.health import Health
from captory_server.interceptors import Boundary
from captory_server.logs import event
from captory_server.ports import Pipeline
from captory_server.reflection import add_reflection
from captory_server.service import CaptoryService

OpenPipeline = Callable[[Settings], Awaitable[Pipeline]]
CAPTORY = pb.DESCRIPTOR.services_by_name["Captory"].full_name
HEALTH = "grpc.health.v1.Health"
HEARTBEAT_S = 1.0
MAX_UNWELL_S = 10.0
MIN_PING_INTERVAL_MS = 5_000  # below the clients' keepalive, which would be refused else

log = logging.getLogger(__name__)


class App:
    """One gRPC server around one pipeline. `bind`, `load`, `run` until told to stop; `close` in any case."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service = CaptoryService(settings, _version())
        self.health = Health([CAPTORY])
        self.pipeline: Pipeline | None = None
        self._server = aio.server(interceptors=[Boundary(settings.max_calls)], options=_options(settings))
        captory_pb2_grpc.add_CaptoryServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        add_reflection([CAPTORY, HEALTH], self._server)

    async def bind(self) -> str:
        """Listen, not serving yet. Returns the bound address; raises `RuntimeError` when it is taken."""
        with _only_for_this_user():
            port = self._server.add_insecure_port(self.settings.address)
        await self._server.start()
        return with_port(self.settings.address, port)

    async def load(self, open_pipeline: OpenPipeline) -> None:
        """Load and warm up the models, then serve."""
        self.pipeline = await open_pipeline(self.settings)
        self.admission = self.service.start(self.pipeline)
        await self.health.set_serving(self._serves)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, saying all the while whether the pipeline is well and its backend answers.

        Raises `Unavailable` when the pipeline is not well and does not recover: a new process can do what this one
        cannot. It could not bring a remote backend back, so that is waited for.
        """
        unwell_s = 0.0
        while not await _set_within(stop, HEARTBEAT_S):
            await self.health.set_serving(self._serves)
            unwell_s = 0.0 if self.service.healthy else unwell_s + HEARTBEAT_S
            if unwell_s >= MAX_UNWELL_S:
                raise Unavailable("UNWELL", f"the pipeline has not been well for {MAX_UNWELL_S:g} s")

    @property
    def _serves(self) -> bool:
        """Whether work that comes now is begun now."""
        return self.pipeline is not None and self.service.healthy and self.pipeline.answers

    async def drain(self) -> None:
        """Take nothing new, finish what is admitted within the grace, cancel the rest."""
        event(log, logging.INFO, "draining", grace_s=self.settings.grace_s)
        self.service.draining.set()
        await self.health.end()
        await self._server.stop(self.settings.grace_s)

    async def close(self) -> None:
        """Free the pipeline. Raises nothing for a server that never loaded."""
        await self._server.stop(None)
        if self.pipeline:
            await self.pipeline.close()


@contextmanager
def _only_for_this_user() -> Iterator[None]:
    """A Unix socket that is made now is nobody else's."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server silently binds the same port
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.server_handshake_timeout_ms", round(settings.handshake_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", round(settings.max_idle_s * 1000)),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]


async def _set_within(stop: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


def _version() -> str:
    try:
        return installed_version("captory")
    except PackageNotFoundError:
        return "0+unknown"
