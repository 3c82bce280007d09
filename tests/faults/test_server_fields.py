"""F14: malformed messages and every field at its edges: refused in the caller's name, and the next call is answered."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakePipeline, Running, png, serve
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import StatusCode, aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captory_proto.v1 import captory_pb2 as pb

ALLOWED = {StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNIMPLEMENTED}
ALLOWED_NUMBERS = {code.value[0] for code in ALLOWED}
TEXTS = ("", "x", "x" * 64, "x" * 65, "x" * 256, "x" * 257, "\0", "\u202e", "../../etc/passwd", "<|eos|>", "é" * 200)
EDGES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_UINT32: (0, 1, 8, 9, 50, 51, 2**31, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2**53 - 1, 2**53, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: (0.0, 1.0, 30.0, 30.001, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324),
    FieldDescriptor.TYPE_ENUM: (0, 1, 2, 3, 8, 99, -1, 2**31 - 1),
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: (b"", b"x", png(), png()[:40], b"\x89PNG\r\n\x1a\n", b"x" * ((1 << 16) + 1)),
}
# A deadline so short that it may pass is not malformed.
NOT_EDGES = {"deadline_ms"}


def edges(message: Message, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each field of a message with each of its edge values, fields of fields included."""
    for field in message.DESCRIPTOR.fields:
        here = (*path, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.name != "samples":
            yield from edges(getattr(message, field.name), here)
        elif field.name == "samples":
            yield from ((here, pb.Sample(prompt_index=a, seed=b)) for a in (0, 2**31) for b in (0, 2**53, 2**63))
        elif field.name not in NOT_EDGES:
            yield from ((here, value) for value in EDGES[field.type])


def put(message: Any, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        message = getattr(message, name)
    field = getattr(message, path[-1])
    if hasattr(field, "append"):
        field.append(value)
    else:
        setattr(message, path[-1], value)


GOOD = {
    "Caption": pb.CaptionRequest(image=png()),
    "Prompt": pb.PromptRequest(caption="x"),
    "Generate": pb.GenerateRequest(prompt="x", parameters=pb.Parameters(steps=1)),
    "GetServerInfo": pb.GetServerInfoRequest(),
    "GetStats": pb.GetStatsRequest(),
}


async def code_of(call: Any) -> StatusCode:
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return StatusCode.OK


@pytest.mark.parametrize("method", ["Caption", "Prompt", "Generate"])
async def test_every_field_of_a_unary_call_at_its_edges(serving: Running, method: str) -> None:
    for path, value in edges(GOOD[method]):
        request = type(GOOD[method])()
        request.CopyFrom(GOOD[method])  # type: ignore[arg-type]
        put(request, path, value)
        code = await code_of(getattr(serving.stub, method)(request))
        assert code in ALLOWED, (path, value, code)
    assert await code_of(getattr(serving.stub, method)(GOOD[method])) is StatusCode.OK


async def test_every_field_of_an_item_at_its_edges(serving: Running) -> None:
    for path, value in edges(pb.Item()):
        item = pb.Item(id="a", prompt="x")
        put(item, path, value)
        call = serving.stub.Synthesize(iter([pb.SynthesizeRequest(item=item)]))
        ends = await ends_of(call)
        assert await call.code() in ALLOWED, (path, value, await call.code())
        assert set(ends) <= ALLOWED_NUMBERS, (path, value, ends)
        assert len(ends) == (await call.code() is StatusCode.OK)
    assert serving.app.admission.num_admitted == serving.app.admission.num_released


async def ends_of(call: Any) -> list[int]:
    """The codes of the items that came to their end before the call did."""
    try:
        return [response.done.status.code async for response in call if response.HasField("done")]
    except aio.AioRpcError:
        return []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(st.binary(max_size=64), min_size=1, max_size=4))
def test_bytes_that_are_no_message(bodies: list[bytes]) -> None:
    """The methods answer, and go on answering."""

    async def attack() -> None:
        async with serve(FakePipeline()) as running:
            for body in bodies:
                for method in GOOD:
                    code = await code_of(running.channel.unary_unary(f"/captory.v1.Captory/{method}")(body))
                    assert code in ALLOWED, (method, body, code)
                stream = running.channel.stream_stream("/captory.v1.Captory/Synthesize")(iter([body]))
                assert await stream.code() in ALLOWED
            assert await code_of(running.stub.Generate(GOOD["Generate"])) is StatusCode.OK

    asyncio.run(attack())


async def test_a_method_that_is_not_there_is_unimplemented(serving: Running) -> None:
    for name in (
        "/captory.v1.Captory/Nope",
        "/nope/Nope",
        "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
    ):
        assert await code_of(serving.channel.unary_unary(name)(b"")) is StatusCode.UNIMPLEMENTED
