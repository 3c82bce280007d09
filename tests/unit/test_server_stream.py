"""One stream without a wire: how much it holds when nobody reads, and what it does to those who break the rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
from fakes import FakePipeline, Faults

from captory_engine.errors import InvalidInput
from captory_engine.items import Event, Item
from captory_proto.v1 import captory_pb2 as pb
from captory_server.admission import Admission
from captory_server.stream import ItemStream


def open_stream(
    pipeline: FakePipeline, max_images: int = 4, max_input_bytes: int = 1 << 20
) -> tuple[ItemStream, Admission]:
    admission = Admission(pipeline, max_item_price=1 << 40, max_queued_price=1 << 40, max_input_bytes=1 << 20)
    return ItemStream(pipeline, admission, asyncio.Event(), max_images, max_input_bytes), admission


async def requests(*items: pb.Item) -> AsyncIterator[pb.SynthesizeRequest]:
    for item in items:
        yield pb.SynthesizeRequest(item=item)


def items(num: int, num_images: int = 1) -> list[pb.Item]:
    return [pb.Item(id=f"i{k}", prompt="x", parameters=pb.Parameters(n=num_images)) for k in range(num)]


async def test_a_caller_that_does_not_read_holds_a_bounded_number_of_images() -> None:
    pipeline = FakePipeline()
    stream, admission = open_stream(pipeline, max_images=4)
    async with aclosing(stream.responses(requests(*items(50, num_images=2)))) as responses:
        await anext(responses)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert pipeline.num_started == 2
        assert pipeline.num_running == 0  # the engine's room is free for others
    assert admission.num_admitted == admission.num_released


async def test_leaving_the_stream_stops_its_items() -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    stream, admission = open_stream(pipeline)
    async with aclosing(stream.responses(requests(*items(3)))) as responses:
        await anext(responses)
        await pipeline.wait_running(3)
    assert pipeline.num_running == 0
    assert admission.num_admitted == admission.num_released == 3


@pytest.mark.parametrize(
    "broken",
    [
        [pb.Item(id="a", prompt="x"), pb.Item(id="a", prompt="x")],
        [pb.Item(prompt="x")],
        [pb.Item(id="a", prompt="x"), pb.Item(id="../b", prompt="x")],
    ],
)
async def test_an_item_that_cannot_be_told_from_others_ends_the_stream(broken: list[pb.Item]) -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    stream, _ = open_stream(pipeline)
    with pytest.raises(InvalidInput):
        [response async for response in stream.responses(requests(*broken))]
    assert pipeline.num_running == 0


async def test_a_crash_is_its_item_s_own() -> None:
    stream, _ = open_stream(FakePipeline(faults=Faults(crashing_ids={"i1"})))
    done = {
        response.item_id: response.done
        async for response in stream.responses(requests(*items(3)))
        if response.HasField("done")
    }
    assert {name: end.num_images for name, end in done.items()} == {"i0": 1, "i1": 0, "i2": 1}
    assert done["i1"].status.message == "internal error"


async def test_a_cancel_after_the_end_is_passed_over() -> None:
    class Lingering(FakePipeline):
        async def run(self, item: Item) -> AsyncGenerator[Event, None]:
            async for happened in super().run(item):
                yield happened
            await told.wait()

    async def late_cancel() -> AsyncIterator[pb.SynthesizeRequest]:
        yield pb.SynthesizeRequest(item=items(1)[0])
        await done.wait()
        yield pb.SynthesizeRequest(cancel_item_id="i0")
        told.set()

    told, done, ends = asyncio.Event(), asyncio.Event(), 0
    stream, _ = open_stream(Lingering())
    async for response in stream.responses(late_cancel()):
        if response.HasField("done"):
            ends += 1
            done.set()
    assert ends == 1
