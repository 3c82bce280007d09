"""One stream without a wire: how much it holds when nobody reads, and what it does to those who break the rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
from fakes import FakePipeline, Faults
from google.rpc import code_pb2

from captory_engine.errors import InvalidInput, Unavailable
from captory_engine.items import Event, Item
from captory_proto.v1 import captory_pb2 as pb
from captory_server.admission import Admission
from captory_server.stream import MAX_BATCH_ITEMS, ItemStream


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


class Lingering(FakePipeline):
    """An item's life goes on for a while after its end has been told."""

    def __init__(self, told: asyncio.Event) -> None:
        super().__init__()
        self._told = told

    async def run(self, item: Item) -> AsyncGenerator[Event, None]:
        async for happened in super().run(item):
            yield happened
        await self._told.wait()


async def test_an_id_sent_again_at_once_is_another_item() -> None:
    async def again() -> AsyncIterator[pb.SynthesizeRequest]:
        yield pb.SynthesizeRequest(item=items(1)[0])
        await done.wait()
        pipeline.gate.clear()
        yield pb.SynthesizeRequest(item=items(1)[0])
        told.set()
        await pipeline.wait_running(1)  # the first is gone
        yield pb.SynthesizeRequest(cancel_item_id="i0")

    told, done = asyncio.Event(), asyncio.Event()
    pipeline = Lingering(told)
    stream, admission = open_stream(pipeline)
    codes = []
    async for response in stream.responses(again()):
        if response.HasField("done"):
            codes.append(response.done.status.code)
            done.set()
    assert codes == [0, code_pb2.CANCELLED]
    assert admission.num_admitted == admission.num_released == 2


async def test_a_cancel_after_the_end_is_passed_over() -> None:
    async def late_cancel() -> AsyncIterator[pb.SynthesizeRequest]:
        yield pb.SynthesizeRequest(item=items(1)[0])
        await done.wait()
        yield pb.SynthesizeRequest(cancel_item_id="i0")
        told.set()

    told, done, ends = asyncio.Event(), asyncio.Event(), 0
    stream, _ = open_stream(Lingering(told))
    async for response in stream.responses(late_cancel()):
        if response.HasField("done"):
            ends += 1
            done.set()
    assert ends == 1


def batch(*some: pb.Item) -> pb.SynthesizeRequest:
    return pb.SynthesizeRequest(batch=pb.ItemBatch(items=some), wants_batches=True)


async def one_request(request: pb.SynthesizeRequest) -> AsyncIterator[pb.SynthesizeRequest]:
    yield request


async def test_a_batch_is_taken_item_by_item_and_answered_in_batches() -> None:
    pipeline = FakePipeline(faults=Faults(crashing_ids={"i2"}))
    stream, admission = open_stream(pipeline, max_images=2)
    answers = [answer async for answer in stream.responses(one_request(batch(*items(6))))]
    assert {answer.WhichOneof("event") for answer in answers} == {"batch"}
    responses = [response for answer in answers for response in answer.batch.responses]
    assert len(answers) < len(responses)
    ends = {response.item_id: response.done for response in responses if response.HasField("done")}
    assert {name: end.num_images for name, end in ends.items()} == {f"i{k}": k != 2 for k in range(6)}
    assert admission.num_admitted == admission.num_released == 6


async def test_who_does_not_want_batches_gets_none() -> None:
    request = pb.SynthesizeRequest(batch=pb.ItemBatch(items=items(3)))
    stream, _ = open_stream(FakePipeline())
    answers = [answer async for answer in stream.responses(one_request(request))]
    assert sum(answer.HasField("done") for answer in answers) == 3


async def test_of_a_batch_only_what_has_room_is_begun() -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    stream, _ = open_stream(pipeline, max_images=2)
    async with aclosing(stream.responses(one_request(batch(*items(6))))) as responses:
        first = asyncio.ensure_future(anext(responses))
        await pipeline.wait_running(2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert pipeline.num_started == 2
        await first
    assert pipeline.num_running == 0


async def test_a_drain_in_a_batch_takes_nothing_more_of_it() -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    admission = Admission(pipeline, max_item_price=1 << 40, max_queued_price=1 << 40, max_input_bytes=1 << 20)
    draining = asyncio.Event()
    stream = ItemStream(pipeline, admission, draining, 2, 1 << 20)
    ends: list[str] = []

    async def read() -> None:
        async for answer in stream.responses(one_request(batch(*items(6)))):
            draining.set()
            pipeline.gate.set()
            ends.extend(response.item_id for response in answer.batch.responses if response.HasField("done"))

    with pytest.raises(Unavailable):
        await read()
    assert ends == ["i0", "i1", "i2"]  # the third had its turn already and waited for room


@pytest.mark.parametrize("num", [0, MAX_BATCH_ITEMS + 1])
async def test_a_batch_of_no_item_or_too_many_ends_the_stream(num: int) -> None:
    stream, _ = open_stream(FakePipeline())
    with pytest.raises(InvalidInput):
        [answer async for answer in stream.responses(one_request(batch(*items(num))))]
