"""The clients against a real server: unary calls, errors in their own words, blocking code, waiting for readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fakes import LIMITS, FakePipeline, Running, family_info, png, serve

from captory_client import sync
from captory_client.backoff import Backoff
from captory_client.client import Client
from captory_client.errors import ClientError, ServerLost
from captory_engine.errors import Unavailable
from captory_proto.v1 import captory_pb2 as pb
from captory_server import app as app_module
from captory_server.app import App
from captory_server.config import Settings


async def test_unary_calls_take_and_give_plain_values(serving: Running) -> None:
    async with Client(serving.address) as client:
        assert (await client.caption(png(3, 2), length="long")).text == "an image of 3 by 2 pixels"
        [prompt] = await client.prompt("on a lake", class_name="crane", mode=pb.MODE_CIP)
        assert prompt.text == "a photo of crane, on a lake"
        [face] = await client.prompt("a face", mode=pb.MODE_FACE, attributes=["young", "black hair"])
        assert face.text == "young, black hair"
        images = await client.generate(prompt.text, n=2, steps=3, seed=1)
        assert [image.provenance.steps for image in images] == [3, 3]
        assert (await client.server_info()).family == "fake"


async def test_a_refusal_has_its_code_and_reason(serving: Running) -> None:
    async with Client(serving.address) as client:
        with pytest.raises(ClientError, match="must not be empty") as refused:
            await client.generate("")
    assert (refused.value.code, refused.value.reason) == ("INVALID_ARGUMENT", "BAD_FIELD")


async def test_a_deadline_is_kept(serving: Running) -> None:
    serving.pipeline.gate.clear()
    async with Client(serving.address) as client:
        with pytest.raises(ClientError) as expired:
            await client.generate("x", deadline_s=0.1)
    assert expired.value.code == "DEADLINE_EXCEEDED"


def test_blocking_code_has_the_same_client() -> None:
    def items() -> Iterator[pb.Item]:
        for k in range(10):
            yield pb.Item(id=f"i{k}", prompt="x")

    def talk(address: str) -> tuple[int, int]:
        with sync.Client(address, max_in_flight=3) as client:
            client.wait_ready()
            num = len(client.generate("x", n=2)) + len(client.prompt("x")) + bool(client.caption(png()).text)
            results = client.synthesize(items())
            next(results)  # and leave the rest
            results.close()
            done = sum(response.HasField("done") for response in client.synthesize(items()))
            assert client.server_info().family == "fake"
        return num, done

    async def main() -> tuple[int, int]:
        async with serve(FakePipeline()) as running:
            return await asyncio.to_thread(talk, running.address)

    assert asyncio.run(main()) == (4, 10)


async def test_readiness_is_waited_for() -> None:
    app, pipeline = App(Settings(address="127.0.0.1:0")), FakePipeline()
    address = await app.bind()
    try:
        async with Client(address) as client:
            waiting = asyncio.create_task(client.wait_ready())
            with pytest.raises(ClientError):  # not loaded; answered after the wait has begun
                await client.server_info(deadline_s=0.05)
            assert not waiting.done()
            await app.load(lambda _: asyncio.sleep(0, pipeline))
            await waiting
            assert (await client.server_info()).family == "fake"
    finally:
        await app.close()


async def test_a_server_that_is_not_there_is_given_up() -> None:
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)

    async with Client("127.0.0.1:1", backoff=Backoff(1, 4, 7), sleep=sleep) as client:
        with pytest.raises(ServerLost):
            await client.wait_ready()
    assert delays == [1, 2, 4]


async def test_more_items_than_the_server_holds_get_through() -> None:
    pipeline = FakePipeline(family_info(limits=replace(LIMITS, max_items=2)))
    async with serve(pipeline, max_stream_images=3) as running, Client(running.address, max_in_flight=50) as client:
        items = (pb.Item(id=f"i{k}", prompt="x", parameters=pb.Parameters(n=1 + k % 8)) for k in range(100))
        done = [response.item_id async for response in client.synthesize(items) if response.HasField("done")]
    assert sorted(done) == sorted(f"i{k}" for k in range(100))


async def test_an_unwell_pipeline_is_said_and_at_last_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(app_module, "MAX_UNWELL_S", 0.05)
    async with serve(FakePipeline()) as running, Client(running.address) as client:
        running.pipeline.healthy = False
        with pytest.raises(ClientError) as unwell:
            await client.server_info(deadline_s=0.1)
        assert unwell.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        with pytest.raises(Unavailable, match="not been well"):
            await running.app.run(asyncio.Event())
