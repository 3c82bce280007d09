"""Who calls the orchestrator: the client as it is, and a plain caller that sends and takes one thing a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple

import grpc
import numpy as np
from PIL import Image

from captory_bench.measuring.served import ArmFailed
from captory_client.client import Client
from captory_engine.images import pixel_sha256
from captory_proto.v1 import captory_pb2 as pb
from captory_proto.v1 import captory_pb2_grpc

IN_FLIGHT = 128
Responses = AsyncIterator[pb.SynthesizeResponse]
Caller = Callable[[str, AsyncGenerator[pb.Item, None]], Responses]


class Picture(NamedTuple):
    """An image that came, and what its record says of its pixels."""

    data: bytes
    pixel_sha256: str


@dataclass(slots=True)
class Heard:
    """What came of one run: pictures by item, how often each item ended, and when the first response came."""

    wall_s: float = 0.0
    first_s: float = 0.0
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    num_ends: dict[str, int] = field(default_factory=dict)

    def check(self, num_items: int, *, painted: bool) -> None:
        """Raise `ArmFailed` unless each item ended once and its one image has the pixels that its record names."""
        if len(self.num_ends) != num_items or set(self.num_ends.values()) != {1}:
            raise ArmFailed(f"of {num_items} items {len(self.num_ends)} ended, not each of them once")
        if len(self.pictures) != (num_items if painted else 0):
            raise ArmFailed(f"{num_items} items gave images to {len(self.pictures)}")
        for item_id, pictures in self.pictures.items():
            if len(pictures) != 1 or _pixels_sha256(pictures[0].data) != pictures[0].pixel_sha256:
                raise ArmFailed(f"{item_id} has {len(pictures)} images, or not the one of its record")


async def items(num: int, first: int, *, painted: bool) -> AsyncGenerator[pb.Item, None]:
    """`num` items, each with a text of its own, that go through the painter once or stop at their prompt."""
    paint = pb.Parameters(steps=1, guidance_scale=1.0)
    write = pb.Parameters(stop_after=pb.STAGE_PROMPT)
    for seed in range(first, first + num):
        text = f"thing {seed} beside a red crane"
        if painted:
            yield pb.Item(id=f"i{seed}", prompt=text, parameters=paint, samples=[pb.Sample(seed=seed)])
        else:
            yield pb.Item(id=f"i{seed}", caption=text, parameters=write, samples=[pb.Sample(seed=seed)])


async def by_client(address: str, source: AsyncGenerator[pb.Item, None]) -> Responses:
    """The client, which asks for batches."""
    async with Client(address, max_in_flight=IN_FLIGHT) as client:
        async for response in client.synthesize(source):
            yield response


async def one_by_one(address: str, source: AsyncGenerator[pb.Item, None]) -> Responses:
    """The stub alone, one item or event a message; no more items in flight than the client's."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def requests() -> AsyncGenerator[pb.SynthesizeRequest, None]:
        async for item in source:
            await room.acquire()
            yield pb.SynthesizeRequest(item=item)

    async with grpc.aio.insecure_channel(address) as channel:
        stub: captory_pb2_grpc.CaptoryAsyncStub = captory_pb2_grpc.CaptoryStub(channel)
        async for response in stub.Synthesize(requests()):
            if response.HasField("done"):
                room.release()
            yield response


async def hear(responses: Responses, progress: Callable[[int], object]) -> Heard:
    """Take all responses; `progress` is called with the number of items that have ended."""
    heard, started = Heard(), time.perf_counter()
    async for response in responses:
        heard.first_s = heard.first_s or time.perf_counter() - started
        _note(heard, response)
        if response.HasField("done"):
            progress(len(heard.num_ends))
    heard.wall_s = time.perf_counter() - started
    return heard


def _note(heard: Heard, response: pb.SynthesizeResponse) -> None:
    match response.WhichOneof("event"):
        case "image":
            picture = Picture(response.image.data, response.image.provenance.pixel_sha256)
            heard.pictures.setdefault(response.item_id, []).append(picture)
        case "failure":
            raise ArmFailed(f"{response.item_id}: {response.failure.status.message}")
        case "done" if response.done.status.code:
            raise ArmFailed(f"{response.item_id}: {response.done.status.message}")
        case "done":
            heard.num_ends[response.item_id] = heard.num_ends.get(response.item_id, 0) + 1


def _pixels_sha256(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return pixel_sha256(np.asarray(image.convert("RGB")))
