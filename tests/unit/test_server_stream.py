"""One stream without a wire: how much it holds when nobody reads, and what it does to those who break the rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from fakes import FakePipeline, Faults

from captory_engine.errors import InvalidInput
from captory_proto.v1 import captory_pb2 as pb
from captory_server.admission import Admission
from captory_server.stream import ItemStream


def open_stream(pipeline: FakePipeline, max_images: int = 4) -> tuple[ItemStream, Admission]:
    admission = Admission(pipeline, max_item_price=1 << 40, max_queued_price=1 << 40)
    return ItemStream(pipeline, admission, asyncio.Event(), max_images), admission


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
