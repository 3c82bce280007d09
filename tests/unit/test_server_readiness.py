"""Health while a backend elsewhere is away: not serving, but here to stay."""

from __future__ import annotations

import asyncio

import pytest
from fakes import FakePipeline, serve
from grpc_health.v1 import health_pb2, health_pb2_grpc

from captory_server import app as app_module

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_server_whose_backend_is_away_says_so_and_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(app_module, "MAX_UNWELL_S", 0.05)
    pipeline, stop = FakePipeline(), asyncio.Event()
    async with serve(pipeline) as running, asyncio.timeout(10):
        serving = asyncio.create_task(running.app.run(stop))
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
        for answers, status in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
            pipeline.answers = answers
            assert (await watch.read()).status == status
            await beats(running.app, 10, monkeypatch)  # twice as many as an unwell pipeline would be given
            assert not serving.done()
        stop.set()
        await serving


async def beats(app: app_module.App, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for so many heartbeats."""
    tell, heard = app.health.set_serving, asyncio.Semaphore(0)

    async def told(serving: bool) -> None:
        heard.release()
        await tell(serving)

    with monkeypatch.context() as listening:
        listening.setattr(app.health, "set_serving", told)
        for _ in range(num):
            await heard.acquire()
