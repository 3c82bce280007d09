"""`grpc.health.v1`: every service serves, or none does.

Not the servicer of `grpcio-health-checking`: there, the first of several watchers that leaves takes the others'
notifications with it (1.81).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Status = int
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """Says of each named service, and of the server as a whole (the empty name), whether it serves."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._serving = False
        self._ended = False
        self._changed = asyncio.Condition()

    async def set_serving(self, serving: bool) -> None:
        """Change the answer and tell who watches."""
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    async def end(self) -> None:
        """Serve no more: tell who watches, and let them go."""
        async with self._changed:
            self._serving, self._ended = False, True
            self._changed.notify_all()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802, D102
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802, D102
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told: Status | None = None
        while (status := await self._change(request.service, told)) != told:
            told = status
            yield health_pb2.HealthCheckResponse(status=told)

    async def _change(self, service: str, told: Status | None) -> Status:
        """Wait until the answer is another than the one last told; the same comes back at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._status(service) != told)
            return self._status(service)

    def _status(self, service: str) -> Status:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._serving else NOT_SERVING
