"""How good the embedded family is, by its own world: fresh scenes through the real server, read back by the oracle."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captory_client.client import Client
from captory_client.errors import ClientError, ServerLost
from captory_client.local_server import LocalServer
from captory_training.oracle import Oracle, Reading
from captory_training.picto.captions import full_caption
from captory_training.picto.reading import read_caption
from captory_training.picto.render import render
from captory_training.picto.scene import Scene, sample_scene

# Trainings take scenes below 10_000_000 and their own trials from 2**32 on: what lies between is fresh.
FIRST_SCENE = 1_000_000_000
SCENES_A_SEED = 100_000
MAX_SEED = 9_999
CAPTIONER = ("kind", "colour", "count", "position")
PAINTER = ("kind", "colour", "background", "count")
ORACLE = ("kind", "colour", "count", "position", "background")
MAX_IN_FLIGHT = 64
REFUSED = "INVALID_ARGUMENT"

Pixels = NDArray[np.uint8]
Question = TypeVar("Question")
Answer = TypeVar("Answer")
Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is evaluated, on how many scenes; what is 0 or empty is the family's default."""

    repository: Path
    family: str = ""
    backend: str = "onnx"
    num_scenes: int = 512
    seed: int = 0
    steps: int = 0
    guidance_scale: float | None = None
    sampler: str = ""


class Share(NamedTuple):
    """How many of `num` are right."""

    right: int
    num: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.right / self.num


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was made and read. What did not come is None, and wrong in every attribute."""

    scenes: list[Scene]
    pictures: list[Pixels]
    captions: list[str | None]
    paintings: list[Pixels | None]
    true_readings: list[Reading]
    painted_readings: list[Reading | None]

    def oracle(self) -> dict[str, Share]:
        """The oracle's own accuracy, on true renders."""
        return _shares(ORACLE, self.scenes, self.true_readings)

    def captioner(self) -> dict[str, Share]:
        """What long captions say, against the scenes."""
        return _shares(CAPTIONER, self.scenes, [_read_words(caption) for caption in self.captions])

    def painter(self) -> dict[str, Share]:
        """What the oracle reads in images from full captions, against the scenes."""
        return _shares(PAINTER, self.scenes, self.painted_readings)


def fresh_scenes(num: int, seed: int) -> list[Scene]:
    """Scenes that no training has seen, as the world samples them."""
    first = FIRST_SCENE + seed * SCENES_A_SEED
    return [sample_scene(first + index) for index in range(num)]


async def evaluate(settings: Settings, progress: Progress) -> Evaluation:
    """Caption and paint fresh scenes through a server of our own. Raises `ClientError`, `FileNotFoundError`."""
    oracle = Oracle(settings.repository)
    scenes = fresh_scenes(settings.num_scenes, settings.seed)
    pictures = [render(scene) for scene in scenes]
    async with serving(settings) as client:
        captions = await ask_all(lambda picture: caption(client, picture, "long"), pictures, "caption", progress)
        paintings = await ask_all(
            lambda scene: paint(client, full_caption(scene), scene.seed, settings), scenes, "paint", progress
        )
    painted = iter(oracle.read([painting for painting in paintings if painting is not None]))
    return Evaluation(
        scenes=scenes,
        pictures=pictures,
        captions=captions,
        paintings=paintings,
        true_readings=oracle.read(pictures),
        painted_readings=[next(painted) if painting is not None else None for painting in paintings],
    )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    """A client of a server of our own. Raises `ClientError`."""
    options = ["--repository", str(settings.repository), "--backend", settings.backend, "--log-level", "warning"]
    options += ["--writer=", "--captioner="]  # the family's own, whatever the environment says
    if settings.family:
        options += ["--family", settings.family]
    async with LocalServer(options) as server, Client(server.address) as client:
        yield client


async def ask_all(
    ask: Callable[[Question], Awaitable[Answer]], questions: Sequence[Question], stage: str, progress: Progress
) -> list[Answer | None]:
    """Every answer in order, `MAX_IN_FLIGHT` at a time; None where that one failed. Refused parameters are raised."""
    room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def one(question: Question) -> Answer | None:
        async with room:
            try:
                return await ask(question)
            except ClientError as error:
                if isinstance(error, ServerLost) or error.code == REFUSED:
                    raise
                return None
            finally:
                progress(stage)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(question)) for question in questions]
    except* ClientError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def caption(client: Client, picture: Pixels, length: str) -> str:
    """The caption of a picture; `length` is "short" or "long"."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return (await client.caption(buffer.getvalue(), length=length)).text


async def paint(client: Client, prompt: str, seed: int, settings: Settings) -> Pixels:
    """One image of a prompt, as bulk work: it shares the device in full batches."""
    parameters: dict[str, Any] = {"seed": seed, "steps": settings.steps, "sampler": settings.sampler}
    if settings.guidance_scale is not None:
        parameters["guidance_scale"] = settings.guidance_scale
    [result] = await client.generate(prompt, work_class="WORK_CLASS_BULK", **parameters)
    with Image.open(io.BytesIO(result.data)) as image:
        return np.asarray(image.convert("RGB"))


def _read_words(caption: str | None) -> Reading | None:
    if caption is None:
        return None
    reading = read_caption(caption)
    return {name: str(getattr(reading, name)) for name in CAPTIONER}


def _shares(names: Iterable[str], scenes: Sequence[Scene], readings: Sequence[Reading | None]) -> dict[str, Share]:
    pairs = list(zip(scenes, readings, strict=True))
    return {name: Share(sum(is_right(name, *pair) for pair in pairs), len(pairs)) for name in names}


def is_right(name: str, scene: Scene, reading: Reading | None) -> bool:
    """Whether a reading has the scene's value of an attribute."""
    return reading is not None and reading[name] == str(getattr(scene, name))
