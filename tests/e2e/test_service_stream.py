"""The stream over a real socket: results by id, flow control, cancels, deadlines, drain."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from fakes import LIMITS, FakePipeline, Faults, Running, family_info, png, serve
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from captory_client.client import Client
from captory_proto.v1 import captory_pb2 as pb
from captory_server.app import App


def send(item: pb.Item) -> pb.SynthesizeRequest:
    return pb.SynthesizeRequest(item=item)


async def test_each_item_gets_all_its_results_and_one_end(serving: Running) -> None:
    items = [pb.Item(id=f"i{k}", image=png(k + 1), parameters=pb.Parameters(n=2, seed=k)) for k in range(40)]
    events = defaultdict(list)
    async with Client(serving.address) as client:
        async for response in client.synthesize(items):
            events[response.item_id].append(response)
    assert set(events) == {item.id for item in items}
    for k, item in enumerate(items):
        kinds = [response.WhichOneof("event") for response in events[item.id]]
        assert kinds == ["caption", "prompt", "image", "image", "done"]
        assert events[item.id][0].caption.text == f"an image of {k + 1} by 8 pixels"
        assert set(events[item.id][-1].done.stage_seconds) == {"caption", "prompt", "image"}


async def test_one_bad_item_is_its_own_row() -> None:
    faults = Faults(crashing_ids={"crash"}, failing_seeds={7}, dropped_seeds={8})
    items = [
        pb.Item(id="good", prompt="x"),
        pb.Item(id="crash", prompt="x"),
        pb.Item(id="no-image", image=b"text"),
        pb.Item(id="no-size", prompt="x", parameters=pb.Parameters(width=3)),
        pb.Item(id="mixed", prompt="x", samples=[pb.Sample(sample_index=k, seed=6 + k) for k in range(3)]),
    ]
    async with serve(FakePipeline(faults=faults)) as running, Client(running.address) as client:
        responses = [response async for response in client.synthesize(items)]
    codes = {one.item_id: one.done.status.code for one in responses if one.HasField("done")}
    assert codes == {"good": 0, "crash": 13, "no-image": 3, "no-size": 3, "mixed": 0}
    failures = {one.failure.sample_index: one.failure for one in responses if one.HasField("failure")}
    assert {index: failure.dropped for index, failure in failures.items()} == {1: False, 2: True}
    assert sum(one.HasField("image") for one in responses) == 2


async def test_the_server_reads_on_only_when_it_has_room() -> None:
    pipeline = FakePipeline(family_info(limits=replace(LIMITS, max_items=2)))
    pipeline.gate.clear()
    async with serve(pipeline) as running:
        call = running.stub.Synthesize()
        for k in range(10):
            await call.write(send(pb.Item(id=f"i{k}", prompt="x")))
        await call.done_writing()
        await pipeline.wait_running(2)
        for _ in range(20):  # many turns of the server's loop
            await running.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert pipeline.num_started == 2
        pipeline.gate.set()
        done = [response.item_id async for response in call if response.HasField("done")]
        assert sorted(done) == [f"i{k}" for k in range(10)]


async def test_a_cancelled_item_ends_and_its_neighbours_go_on(serving: Running) -> None:
    serving.pipeline.gate.clear()
    call = serving.stub.Synthesize()
    for name in ("a", "b"):
        await call.write(send(pb.Item(id=name, prompt="x")))
    await serving.pipeline.wait_running(2)
    await call.write(pb.SynthesizeRequest(cancel_item_id="unknown"))
    await call.write(pb.SynthesizeRequest(cancel_item_id="a"))
    await serving.pipeline.wait_running(1)
    serving.pipeline.gate.set()
    await call.write(send(pb.Item(id="c", prompt="x")))
    await call.done_writing()
    codes = {one.item_id: one.done.status.code async for one in call if one.HasField("done")}
    assert codes == {"a": StatusCode.CANCELLED.value[0], "b": 0, "c": 0}


async def test_a_disconnect_stops_the_work(serving: Running) -> None:
    serving.pipeline.gate.clear()
    call = serving.stub.Synthesize()
    await call.write(send(pb.Item(id="a", prompt="x")))
    await serving.pipeline.wait_running(1)
    call.cancel()
    await serving.pipeline.wait_running(0)


async def test_a_call_s_deadline_stops_the_work(serving: Running) -> None:
    serving.pipeline.gate.clear()
    with pytest.raises(aio.AioRpcError) as expired:
        await serving.stub.Generate(pb.GenerateRequest(prompt="x"), timeout=0.2)
    assert expired.value.code() is StatusCode.DEADLINE_EXCEEDED
    await serving.pipeline.wait_running(0)


async def test_an_item_s_deadline_ends_the_item_only(serving: Running) -> None:
    serving.pipeline.gate.clear()
    call = serving.stub.Synthesize()
    await call.write(send(pb.Item(id="a", prompt="x", parameters=pb.Parameters(deadline_ms=1))))
    assert (await read_done(call)).done.status.code == StatusCode.DEADLINE_EXCEEDED.value[0]
    serving.pipeline.gate.set()
    await call.write(send(pb.Item(id="b", prompt="x")))
    assert (await read_done(call)).item_id == "b"
    await call.done_writing()
    assert await call.code() is StatusCode.OK


async def read_done(call: Any) -> pb.SynthesizeResponse:
    """The next end of an item."""
    while not (response := await call.read()).HasField("done"):
        pass
    return response


async def test_an_empty_request_ends_the_call(serving: Running) -> None:
    call = serving.stub.Synthesize(iter([pb.SynthesizeRequest()]))
    with pytest.raises(aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT


async def test_a_drain_finishes_what_is_admitted_and_takes_nothing_new(serving: Running) -> None:
    serving.pipeline.gate.clear()
    call = serving.stub.Synthesize()
    watch = health_pb2_grpc.HealthStub(serving.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await call.write(send(pb.Item(id="a", prompt="x")))
    await serving.pipeline.wait_running(1)
    draining = asyncio.create_task(serving.app.drain())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    serving.pipeline.gate.set()
    assert (await read_done(call)).done.num_images == 1
    with pytest.raises(aio.AioRpcError) as drained:
        await call.read()
    assert drained.value.code() is StatusCode.UNAVAILABLE
    await draining
    assert serving.app.admission.num_admitted == serving.app.admission.num_released == 1


async def test_what_does_not_finish_within_the_grace_is_cancelled() -> None:
    async with serve(FakePipeline(), grace_s=0.05) as running:
        running.pipeline.gate.clear()
        call = running.stub.Generate(pb.GenerateRequest(prompt="x"))
        await running.pipeline.wait_running(1)
        await running.app.drain()
        with pytest.raises((aio.AioRpcError, asyncio.CancelledError)):
            await call
        await running.pipeline.wait_running(0)


async def test_a_client_goes_on_with_the_next_server_where_the_drained_one_stopped() -> None:
    first, address = FakePipeline(), ""
    items = [pb.Item(id=f"i{k}", prompt="x", parameters=pb.Parameters(seed=k)) for k in range(30)]
    second = FakePipeline()
    async with serve(first) as running:
        address = running.address
        async with Client(address, max_in_flight=4) as client:
            results = client.synthesize(items)
            ids = [(await anext(results)).item_id for _ in range(10)]
            handover = asyncio.create_task(hand_over(running.app, second, address))
            async for response in results:
                ids += [response.item_id] if response.HasField("done") else []
            app = await handover
            await app.close()
    assert {f"i{k}" for k in range(30)} <= set(ids)
    assert first.num_released + second.num_released >= 30


async def hand_over(first: App, pipeline: FakePipeline, address: str) -> App:
    await first.drain()
    app = App(first.settings.model_copy(update={"address": address}))
    await app.bind()

    async def open_fake(_: object) -> FakePipeline:
        return pipeline

    await app.load(open_fake)
    return app
