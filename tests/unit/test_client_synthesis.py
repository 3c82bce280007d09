"""One pass over items, against calls that break in scripted ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import StatusCode, aio
from grpc.aio import Metadata

from captory_client.backoff import Backoff
from captory_client.errors import ClientError, ServerLost
from captory_client.synthesis import MAX_BATCH_BYTES, Synthesis, Window
from captory_proto.v1 import captory_pb2 as pb


class Call:
    """Answers each item with two images and its end; breaks after `break_after` responses."""

    def __init__(self, break_after: int | None = None, code: StatusCode = StatusCode.UNAVAILABLE) -> None:
        self.sent: list[str] = []
        self.requests: list[int] = []  # items of each batch, 0 for an item alone
        self._left = break_after
        self._code = code
        self._responses: asyncio.Queue[pb.SynthesizeResponse | None] = asyncio.Queue()

    async def write(self, request: pb.SynthesizeRequest) -> None:
        name = request.item.id
        self.sent.append(name)
        self.requests.append(len(request.batch.items))
        for index in range(2):
            made = pb.Provenance(sample_index=index)
            self._responses.put_nowait(pb.SynthesizeResponse(item_id=name, image=pb.ImageResult(provenance=made)))
        self._responses.put_nowait(pb.SynthesizeResponse(item_id=name, done=pb.ItemDone(num_images=2)))

    async def done_writing(self) -> None:
        self._responses.put_nowait(None)

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[pb.SynthesizeResponse]:
        while (response := await self._responses.get()) is not None:
            if self._left == 0:
                raise aio.AioRpcError(self._code, Metadata(), Metadata(), "broken")
            self._left = None if self._left is None else self._left - 1
            yield response


class BatchCall(Call):
    """Knows batches, and says so to whom wants them: the responses to one request come in one message."""

    async def write(self, request: pb.SynthesizeRequest) -> None:
        assert request.wants_batches
        answer = pb.SynthesizeResponse()
        for item in request.batch.items or [request.item]:
            self.sent.append(item.id)
            for index in range(2):
                made = pb.Provenance(sample_index=index)
                answer.batch.responses.add(item_id=item.id, image=pb.ImageResult(provenance=made))
            answer.batch.responses.add(item_id=item.id, done=pb.ItemDone(num_images=2))
        self.requests.append(len(request.batch.items))
        self._responses.put_nowait(answer)


class Line:
    """Hands out the scripted calls in order, the last one for ever; notes the pauses."""

    def __init__(self, *calls: Call) -> None:
        self.calls = list(calls)
        self.opened: list[Call] = []
        self.pauses: list[float] = []
        self.lost = 0

    def open(self) -> Any:
        call = self.calls.pop(0) if self.calls else Call()
        self.opened.append(call)
        return call

    async def sleep(self, delay_s: float) -> None:
        self.pauses.append(delay_s)

    async def on_lost(self) -> None:
        self.lost += 1

    def synthesis(self, max_in_flight: int = 4, backoff: Backoff | None = None, max_bytes: int = 1 << 20) -> Synthesis:
        return Synthesis(self.open, Window(max_in_flight, max_bytes), backoff or Backoff(), self.sleep, self.on_lost)


def items(num: int) -> list[pb.Item]:
    return [pb.Item(id=f"i{k}", prompt="x") for k in range(num)]


async def told(synthesis: Synthesis, some: Any) -> list[tuple[str, str | None, int]]:
    return [
        (one.item_id, one.WhichOneof("event"), one.image.provenance.sample_index)
        async for one in synthesis.results(some)
    ]


@pytest.mark.parametrize("break_after", range(12))
async def test_wherever_it_breaks_each_result_comes_once(break_after: int) -> None:
    line = Line(Call(break_after), Call(break_after), Call())
    results = await told(line.synthesis(), items(9))
    assert len(results) == len(set(results)) == 27
    assert line.lost == len(line.pauses) == len(line.opened) - 1


async def test_only_what_is_not_done_is_sent_again() -> None:
    line = Line(Call(break_after=7), Call())
    await told(line.synthesis(), items(4))
    assert line.opened[1].sent == ["i2", "i3"]


async def test_no_more_are_open_than_allowed() -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for item in items(20):
            taken += 1
            yield item

    results = Line().synthesis(max_in_flight=3).results(source())
    await anext(results)
    assert taken <= 3
    await results.aclose()


async def test_progress_renews_patience_and_the_lack_of_it_ends() -> None:
    line = Line(*(Call(break_after=3) for _ in range(6)))
    assert len(await told(line.synthesis(), items(9))) == 27
    assert set(line.pauses) == {0.1}
    dead = Line(*(Call(break_after=0) for _ in range(50)))
    with pytest.raises(ServerLost, match="did not come back"):
        await told(dead.synthesis(backoff=Backoff(first_s=1, longest_s=4, total_s=10)), items(1))
    assert dead.pauses == [1, 2, 4, 3]


async def test_a_refusal_is_not_tried_again() -> None:
    line = Line(Call(break_after=0, code=StatusCode.INVALID_ARGUMENT))
    with pytest.raises(ClientError) as refused:
        await told(line.synthesis(), items(1))
    assert refused.value.code == "INVALID_ARGUMENT"
    assert line.pauses == []


async def test_grpc_s_own_internal_errors_are_a_lost_connection() -> None:
    line = Line(Call(break_after=1, code=StatusCode.INTERNAL))
    assert len(await told(line.synthesis(), items(2))) == 6


async def test_a_stream_that_ends_too_early_is_a_lost_connection() -> None:
    class Short(Call):
        async def write(self, request: pb.SynthesizeRequest) -> None:
            pass

        async def done_writing(self) -> None:
            self._responses.put_nowait(None)

    line = Line(Short())
    assert len(await told(line.synthesis(), items(2))) == 6
    assert line.pauses == [0.1]


async def failing() -> AsyncIterator[pb.Item]:
    yield items(1)[0]
    raise LookupError("the source broke")


async def twice() -> AsyncIterator[pb.Item]:
    for item in items(1) + items(1):
        yield item


@pytest.mark.parametrize(("source", "error"), [(failing, LookupError), (twice, ValueError)])
async def test_an_error_of_the_source_comes_after_the_results_before_it(
    source: Callable[[], Any], error: type[Exception]
) -> None:
    results = Line().synthesis().results(source())
    assert [(await anext(results)).item_id for _ in range(3)] == ["i0"] * 3
    with pytest.raises(error):
        await anext(results)


async def test_no_items_need_no_connection_to_end() -> None:
    assert await told(Line().synthesis(), []) == []


async def at_once(some: list[pb.Item]) -> AsyncIterator[pb.Item]:
    for item in some:
        yield item


async def test_batches_go_to_a_server_that_has_shown_that_it_knows_them() -> None:
    line = Line(BatchCall())
    results = await told(line.synthesis(max_in_flight=16), at_once(items(200)))
    assert len(results) == len(set(results)) == 600
    assert sorted(line.opened[0].sent) == sorted(item.id for item in items(200))
    assert line.opened[0].requests[0] == 0  # nothing is known yet
    assert max(line.opened[0].requests) > 1
    plain = Line(Call())
    await told(plain.synthesis(max_in_flight=16), at_once(items(50)))
    assert set(plain.opened[0].requests) == {0}


async def test_what_is_not_small_goes_alone() -> None:
    line = Line(BatchCall())
    large = [pb.Item(id=f"i{k}", image=bytes(MAX_BATCH_BYTES)) for k in range(20)]
    assert len(await told(line.synthesis(max_bytes=1 << 30), at_once(large))) == 60
    assert set(line.opened[0].requests) == {0}


@pytest.mark.parametrize("break_after", range(4))
async def test_batches_that_break_come_once_all_the_same(break_after: int) -> None:
    line = Line(BatchCall(break_after), BatchCall(break_after), Call())
    results = await told(line.synthesis(), at_once(items(9)))
    assert len(results) == len(set(results)) == 27
    for call in line.opened:  # a new connection may lead to another server
        assert call.requests[0] == 0
        assert isinstance(call, BatchCall) or set(call.requests) == {0}
