"""A pipeline without models: images are drawn from the seed alone, and faults come by switch."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from grpc import aio
from PIL import Image, UnidentifiedImageError

from captory_engine.device import StageCounts
from captory_engine.errors import Expired, InvalidInput
from captory_engine.info import FamilyInfo, Limits, ModelInfo
from captory_engine.items import (
    Captioned,
    Done,
    Event,
    Failed,
    Item,
    Mode,
    Painted,
    Parameters,
    Prompted,
    Provenance,
    Sample,
    Stage,
)
from captory_proto.v1.captory_pb2_grpc import CaptoryStub
from captory_server.app import App
from captory_server.config import Settings
from captory_server.logs import configure
from captory_server.process import run_server

DEFAULTS = Parameters(steps=4, guidance_scale=2.0, sampler="ddim", width=16, height=16)
LIMITS = Limits(max_images=8, max_steps=50, max_image_bytes=1 << 16, max_text_bytes=256, max_items=16)


def family_info(**changes: object) -> FamilyInfo:
    """The fake family; `changes` replace fields of its info."""
    info = FamilyInfo(
        name="fake",
        models={"painter": ModelInfo("0" * 64, "fake")},
        defaults=DEFAULTS,
        sizes=((16, 16), (32, 16)),
        samplers=("ddim", "euler"),
        modes=tuple(Mode),
        limits=LIMITS,
        backend="fake",
        in_world_only=True,
        mode_sha256={mode: hashlib.sha256(mode.encode()).hexdigest() for mode in Mode},
    )
    return replace(info, **changes)  # type: ignore[arg-type]


@dataclass
class Faults:
    """What shall go wrong. Names are those of the images' seeds or the items' ids."""

    failing_seeds: set[int] = field(default_factory=set)
    dropped_seeds: set[int] = field(default_factory=set)
    crashing_ids: set[str] = field(default_factory=set)
    before_image: Callable[[Item, Sample], None] | None = None


@dataclass
class FakeDevice:
    """Counts that a test sets."""

    num_lanes: int = 2
    uptime_s: float = 1.0
    counts: dict[str, StageCounts] = field(default_factory=dict)


class FakePipeline:
    """Behaves as the engine's does. While `gate` is clear, items wait at the painter."""

    def __init__(self, info: FamilyInfo | None = None, faults: Faults | None = None) -> None:
        self.info = info or family_info()
        self.faults = faults or Faults()
        self.device = FakeDevice()
        self.healthy = self.answers = True
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_started = 0
        self.num_released = 0
        self.changed = asyncio.Condition()

    @property
    def num_running(self) -> int:
        return self.num_started - self.num_released

    async def wait_running(self, num: int) -> None:
        """Come back when `num` items run."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.num_running == num)

    def rounds(self, item: Item) -> int:
        return 2 if item.mode is Mode.CLOSED_LOOP and item.prompt is None else 1

    async def live(self, item: Item, emit: Callable[[Event], object]) -> None:
        async with aclosing(self.run(item)) as events:
            async for event in events:
                emit(event)

    async def run(self, item: Item) -> AsyncGenerator[Event, None]:
        self.num_started += 1
        await self._notify()
        try:
            async with asyncio.timeout(item.parameters.deadline_s):
                async for event in self._events(item):
                    yield event
        except TimeoutError:
            raise Expired("DEADLINE", "the item's deadline passed") from None
        finally:
            self.num_released += 1
            await self._notify()

    async def drain(self, timeout_s: float) -> bool:
        await asyncio.wait_for(self.wait_running(0), timeout_s)
        return True

    async def close(self) -> None:
        self.closed = True

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _events(self, item: Item) -> AsyncIterator[Event]:
        if item.id in self.faults.crashing_ids:
            raise ZeroDivisionError(f"prompt of {item.id} in the words of the error")
        caption = item.caption or ""
        if item.image is not None:
            caption = describe(item.image)
            yield Captioned(caption, "long" if item.mode is Mode.RECAP_LONG else "short", len(caption.split()))
        if item.parameters.stop_after is not Stage.CAPTION:
            async for event in self._samples(item, caption):
                yield event
        else:
            yield Done(0, 0, {"caption": 0.1})

    async def _samples(self, item: Item, caption: str) -> AsyncIterator[Event]:
        failed = painted = 0
        for index in sorted({sample.prompt_index for sample in item.samples}):
            yield Prompted(prompt_of(item, caption), index, 5)
        for sample in item.samples if item.parameters.stop_after is Stage.IMAGE else ():
            event = await self._paint(item, sample, caption)
            failed, painted = failed + isinstance(event, Failed), painted + isinstance(event, Painted)
            yield event
        yield Done(painted, failed, {"caption": 0.1, "prompt": 0.2, "image": 0.3})

    async def _paint(self, item: Item, sample: Sample, caption: str) -> Event:
        await self.gate.wait()
        if self.faults.before_image:
            self.faults.before_image(item, sample)
        if sample.seed in self.faults.failing_seeds:
            return Failed(sample, "NOT_A_NUMBER", "the image has values that are no numbers")
        if sample.seed in self.faults.dropped_seeds:
            return Failed(sample, "OVER_TOKEN_BUDGET", "the prompt is over the token budget", dropped=True)
        pixels = draw(sample.seed, item.parameters)
        return Painted(encode(pixels, str(item.parameters.format)), self._provenance(item, sample, caption, pixels))

    def _provenance(self, item: Item, sample: Sample, caption: str, pixels: np.ndarray) -> Provenance:
        return Provenance(
            caption=caption,
            prompt=prompt_of(item, caption),
            class_name=item.class_name,
            mode=item.mode,
            sample=sample,
            parameters=item.parameters,
            family=self.info.name,
            models={name: model.sha256 for name, model in self.info.models.items()},
            token_count=5,
            token_policy="truncate",
            pixel_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
            backend=self.info.backend,
            mode_sha256=self.info.mode_sha256[item.mode],
            attributes=item.attributes,
        )


def describe(image: bytes) -> str:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return f"an image of {opened.width} by {opened.height} pixels"
    except (UnidentifiedImageError, OSError):
        raise InvalidInput("BAD_IMAGE", "the image cannot be read", field="image") from None


def prompt_of(item: Item, caption: str) -> str:
    told = ", ".join(item.attributes) if item.mode is Mode.FACE and item.attributes else caption
    return item.prompt or ", ".join(
        part for part in (item.class_name and f"a photo of {item.class_name}", told) if part
    )


def draw(seed: int, parameters: Parameters) -> np.ndarray:
    shape = parameters.height, parameters.width, 3
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(pixels: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, lossless=True)
    return buffer.getvalue()


def png(width: int = 8, height: int = 8, colour: str = "red") -> bytes:
    """An input image."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "png")
    return buffer.getvalue()


FAKE_SERVER = (sys.executable, __file__)


def main(
    address: Annotated[str, typer.Option()],
    address_fd: int | None = None,
    parent_fd: int | None = None,
    family: str = "fake",
) -> None:
    """Run a fake server as a process. FAKE_CRASH_FILE names a file: see `_crash_once`."""
    configure("info", None)
    if family != "fake":
        print(f"no family {family}", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(run_server(Settings(address=address), _open_fake, address_fd=address_fd, parent_fd=parent_fd))


async def _open_fake(_: Settings) -> FakePipeline:
    return FakePipeline(faults=Faults(before_image=_crash_once))


def _crash_once(item: Item, sample: Sample) -> None:
    """Die as by kill -9 while the file named by FAKE_CRASH_FILE exists, which goes first."""
    crash = os.environ.get("FAKE_CRASH_FILE")
    if crash and Path(crash).exists() and sample.seed % 3 == 0:
        Path(crash).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Running:
    """A served pipeline, and a channel to it."""

    app: App
    pipeline: FakePipeline
    address: str
    channel: aio.Channel

    @property
    def stub(self) -> CaptoryStub:
        return CaptoryStub(self.channel)


@asynccontextmanager
async def serve(pipeline: FakePipeline, **settings: Any) -> AsyncIterator[Running]:
    """Serve `pipeline` on a port of the system's choice."""
    app = App(Settings(address="127.0.0.1:0", **settings))

    async def open_fake(_: Settings) -> FakePipeline:
        return pipeline

    address = await app.bind()
    try:
        await app.load(open_fake)
        async with aio.insecure_channel(address) as channel:
            yield Running(app, pipeline, address, channel)
    finally:
        pipeline.gate.set()
        await app.close()


if __name__ == "__main__":
    typer.run(main)
