"""The served arms: a server of our own as a child process, and the real client, over gRPC on a Unix socket."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from captory_bench.measuring.machine import cpu_seconds
from captory_bench.measuring.outcome import Outcome, Stopwatch, Times
from captory_bench.measuring.stats import Stats, read_stats
from captory_bench.measuring.workload import Painting, Photo
from captory_client.client import MAX_IN_FLIGHT, Client
from captory_client.errors import explain
from captory_client.local_server import LocalServer
from captory_proto.v1 import captory_pb2 as pb
from captory_proto.v1 import captory_pb2_grpc

# Of the family alone: what is on vLLM by the environment is not what is measured.
OWN_MODELS = ("--writer=", "--captioner=")
# Open loop: the client must never hold back what is due.
MAX_OPEN_LOOP_ITEMS = 256


class ArmFailed(Exception):  # noqa: N818
    """An item of the workload was not painted: nothing measured here would mean anything."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    address: str
    pid: int
    stub: captory_pb2_grpc.CaptoryAsyncStub

    async def photos(self, photos: Iterable[Photo], steps: int, mode: pb.Mode.ValueType = pb.MODE_CIP) -> Outcome:
        """Send all photographs at once, as fast as the client's flow control lets them go."""
        return await self._measured(photo_items(photos, steps, mode))

    async def paintings(self, jobs: Sequence[Painting]) -> Outcome:
        """Send all prompts at once."""
        return await self._measured(_painting_items(jobs))

    async def open_loop(self, jobs: Sequence[Painting], arrivals_s: Sequence[float]) -> Outcome:
        """Send each prompt when it is due, as interactive work, whatever has become of the others."""
        due = {job.id: at for job, at in zip(jobs, arrivals_s, strict=True)}
        outcome = await self._measured(_when_due(jobs, due), max_in_flight=MAX_OPEN_LOOP_ITEMS)
        latencies = {key: at - due[key] for key, at in outcome.latencies.items()}
        return replace(outcome, latencies=latencies)

    async def stats(self) -> Stats:
        """What the server's device has done since its start. Raises `ClientError`."""
        try:
            return read_stats(await self.stub.GetStats(pb.GetStatsRequest()))
        except grpc.aio.AioRpcError as error:
            raise explain(error) from error

    async def _measured(self, items: AsyncGenerator[pb.Item, None], max_in_flight: int = MAX_IN_FLIGHT) -> Outcome:
        """From the first send to the last result. Decoding of the images is outside the clock."""
        before, server_before_s = await self.stats(), cpu_seconds(self.pid)
        async with Client(self.address, max_in_flight=max_in_flight) as client:
            await client.server_info()
            arrived = await _collect(client, items)
        server_s, done = cpu_seconds(self.pid) - server_before_s, (await self.stats()).since(before)
        return Outcome(
            images={key: _decode(image.data) for key, image in arrived.images.items()},
            prompts={key: image.provenance.prompt for key, image in arrived.images.items()},
            latencies=arrived.at_s,
            times=Times(arrived.times.wall_s, arrived.times.cpu_s + server_s),
            denoiser=done.stages["denoise"],
        )


@asynccontextmanager
async def serving(options: Sequence[str]) -> AsyncIterator[Served]:
    """A child server with these options of `captory serve`; it is warmed up when it is given."""
    async with (
        LocalServer(["--log-level", "warning", *options]) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Served(server.address, server.pid, captory_pb2_grpc.CaptoryStub(channel))


def server_options(repository: Path, family: str, backend: str, num_threads: int) -> list[str]:
    """The options that make the server run what the arms in process run."""
    options = ["--repository", str(repository), "--backend", backend, "--threads", str(num_threads), *OWN_MODELS]
    return [*options, "--family", family] if family else options


@dataclass(slots=True)
class _Arrived:
    images: dict[str, pb.ImageResult]
    at_s: dict[str, float]
    times: Times


async def _collect(client: Client, items: AsyncGenerator[pb.Item, None]) -> _Arrived:
    arrived, watch = _Arrived({}, {}, Times()), Stopwatch()
    async for response in client.synthesize(items):
        match response.WhichOneof("event"):
            case "image":
                arrived.images[response.item_id] = response.image
                arrived.at_s[response.item_id] = watch.read().wall_s
            case "failure":
                raise ArmFailed(f"{response.item_id}: {response.failure.status.message}")
            case "done" if response.done.status.code:
                raise ArmFailed(f"{response.item_id}: {response.done.status.message}")
    arrived.times = watch.read()
    return arrived


async def photo_items(
    photos: Iterable[Photo], steps: int, mode: pb.Mode.ValueType = pb.MODE_CIP
) -> AsyncGenerator[pb.Item, None]:
    """Photographs to be captioned, prompted and painted, as they are sent."""
    for photo in photos:
        yield pb.Item(
            id=photo.id,
            image=photo.data,
            class_name=photo.class_name,
            mode=mode,
            parameters=pb.Parameters(steps=steps),
            samples=[pb.Sample(seed=photo.seed)],
        )


async def _painting_items(jobs: Sequence[Painting]) -> AsyncGenerator[pb.Item, None]:
    for job in jobs:
        yield painting_item(job, pb.WORK_CLASS_BULK)


async def _when_due(jobs: Sequence[Painting], due: dict[str, float]) -> AsyncGenerator[pb.Item, None]:
    started = time.perf_counter()
    for job in jobs:
        await asyncio.sleep(max(0.0, due[job.id] - (time.perf_counter() - started)))
        yield painting_item(job, pb.WORK_CLASS_INTERACTIVE)


def painting_item(job: Painting, work_class: pb.WorkClass.ValueType) -> pb.Item:
    """A prompt to be painted, as it is sent."""
    start, stop = job.guidance_interval
    parameters = pb.Parameters(
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        guidance_interval=pb.GuidanceInterval(start=start, stop=stop),
        sampler=job.sampler,
        work_class=work_class,
    )
    return pb.Item(id=job.id, prompt=job.prompt, parameters=parameters, samples=[pb.Sample(seed=job.seed)])


def _decode(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
