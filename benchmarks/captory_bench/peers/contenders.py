"""What runs the same work in `captory bench peers`: Captory and what people would use instead.

A contender that answers single requests (LitServe, Ray Serve, Triton) writes only `Requests`; `PerRequest` makes the
rest of it. Each is opened by a function `(Conditions) -> async context manager of a contender`, found by name in
`PEERS` and imported only when it is asked for, since what it needs may not be installed.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from captory_bench.measuring.graphs import Pixels
from captory_bench.measuring.outcome import Outcome, Stopwatch, Times
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.workload import Painting, Photo
from captory_engine.family import find_family
from captory_engine.sessions.options import available_cpus

CAPTORY = "captory"
PEERS = {
    "diffusers": "captory_bench.peers.diffusers:open_best_batch",
    "diffusers-1": "captory_bench.peers.diffusers:open_batch_1",
    "litserve": "captory_bench.peers.litserve:open_litserve",
    "litserve-together": "captory_bench.peers.litserve:open_litserve_together",
    "ray": "captory_bench.peers.ray:open_ray",
    "triton": "captory_bench.peers.triton:open_triton",
}

TURN_TIMEOUT_S = 1800.0
NUM_WAKE = 4
_WAKE = Painting("wake", "a mug", 1, 0)


class PeerUnavailable(Exception):  # noqa: N818
    """A peer is not installed, did not start or failed; the words say why. The others go on."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The same for all: the graphs and how many threads may compute (never 0)."""

    repository: Path
    family: str
    num_threads: int
    steps: int  # of the uniform job, for a contender's trial of its own settings
    backend: str = "onnx"
    weights: Path | None = None  # the same family as a Hugging Face checkpoint folder, for torch


def conditions_for(
    repository: Path, family: str, num_threads: int, steps: int, backend: str = "onnx", weights: Path | None = None
) -> Conditions:
    """The conditions, with all CPUs and the clone's checkpoints where they are left out. Raises `BadModel`."""
    located = find_family(repository, family)
    weights = weights or repository.parent / "training" / "checkpoints" / located.family.name
    return Conditions(repository, family, num_threads or available_cpus(), steps, backend, weights)


class Contender(Protocol):
    """Something that paints. Images and prompts of an `Outcome` are by the item's id."""

    @property
    def name(self) -> str:
        """As in `PEERS`, or `CAPTORY`."""
        ...

    @property
    def settings(self) -> str:
        """What it was run with and by what trial that was chosen, in words, for the table."""
        ...

    async def paint_all(self, jobs: Sequence[Painting]) -> Outcome:
        """Paint all prompts, given at once, as fast as it can."""
        ...

    async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """Caption every photograph, make the caption-in-prompt prompt and paint it, all given at once."""
        ...


@runtime_checkable
class OpenLoopContender(Contender, Protocol):
    """A contender that takes requests while it works."""

    async def open_loop(self, jobs: Sequence[Painting], arrivals_s: Sequence[float]) -> Outcome:
        """Send each prompt when it is due. Latencies are from the intended send to the received image."""
        ...


@runtime_checkable
class RewritingContender(Contender, Protocol):
    """A contender with a writer."""

    async def paint_rewritten(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """Caption every photograph, have a language model rewrite the caption, and paint the prompt with it."""
        ...


Opener = Callable[[Conditions], AbstractAsyncContextManager[Contender]]


def find_opener(name: str) -> Opener:
    """The opener of that peer. Raises `PeerUnavailable` when what it needs is not installed."""
    module, _, function = PEERS[name].partition(":")
    try:
        opener: Opener = getattr(import_module(module), function)
    except ImportError as error:
        raise PeerUnavailable(f"not installed: {error}") from None
    return opener


class Reply(NamedTuple):
    """What a request gave: an encoded image, or its pixels [H, W, 3] where the wire carries those.

    `batch_size` is how many requests were painted together with it, itself included; 0 where nobody knows.
    """

    image: bytes | Pixels
    prompt: str
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class PeerOutcome(Outcome):
    """One run of a peer. `batches` counts its batches by their size."""

    batches: Counter[int] = field(default_factory=Counter)


Call = Callable[[], Awaitable[Reply]]


class Requests(Protocol):
    """One request, one image."""

    async def paint(self, job: Painting) -> Reply:
        """Text to image."""
        ...

    async def paint_photo(self, photo: Photo, steps: int) -> Reply:
        """Photograph to caption to prompt to image."""
        ...


@dataclass(frozen=True, slots=True)
class PerRequest:
    """A contender out of single requests, all of one workload in flight at once. Decoding is outside the clock.

    `cpu_s` tells what the peer's own processes have used so far; in the block of `awake` they run, and a few requests
    outside the clock see to it that they do. What fails is told as `PeerUnavailable`.
    """

    name: str
    settings: str
    requests: Requests
    cpu_s: Callable[[], float]
    awake: Callable[[], AbstractContextManager[object]] = nullcontext

    async def paint_all(self, jobs: Sequence[Painting]) -> Outcome:
        """Send all prompts at once."""
        return await self._measured({job.id: partial(self.requests.paint, job) for job in jobs})

    async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """Send all photographs at once."""
        return await self._measured({photo.id: partial(self.requests.paint_photo, photo, steps) for photo in photos})

    async def open_loop(self, jobs: Sequence[Painting], arrivals_s: Sequence[float]) -> Outcome:
        """Send each prompt when it is due, whatever has become of the others."""
        due = {job.id: at_s for job, at_s in zip(jobs, arrivals_s, strict=True)}
        return await self._measured({job.id: partial(self.requests.paint, job) for job in jobs}, due)

    async def _measured(self, calls: Mapping[str, Call], due: Mapping[str, float] | None = None) -> Outcome:
        with self.awake(), _peer_failures():
            await asyncio.gather(*(self.requests.paint(_WAKE) for _ in range(NUM_WAKE)))
            watch, before_s = Stopwatch(), self.cpu_s()
            replies, latencies = await _answered(calls, due or dict.fromkeys(calls, 0.0), watch)
            times, cpu_s = watch.read(), self.cpu_s() - before_s
        return PeerOutcome(
            images={key: _pixels(reply.image) for key, reply in replies.items()},
            prompts={key: reply.prompt for key, reply in replies.items()},
            latencies=latencies,
            times=Times(times.wall_s, times.cpu_s + cpu_s),
            batches=batches_of(replies.values()),
        )


def batches_of(replies: Iterable[Reply]) -> Counter[int]:
    """Batches by size, out of replies that each tell the size of their own."""
    told = Counter(reply.batch_size for reply in replies if reply.batch_size)
    return Counter({size: num_replies // size for size, num_replies in told.items()})


async def _answered(
    calls: Mapping[str, Call], due: Mapping[str, float], watch: Stopwatch
) -> tuple[dict[str, Reply], dict[str, float]]:
    """Replies and latencies of calls that are made when they are due; the first error ends the others."""
    latencies: dict[str, float] = {}

    async def answer(key: str) -> Reply:
        await asyncio.sleep(max(0.0, due[key] - watch.read().wall_s))
        reply = await calls[key]()
        latencies[key] = watch.read().wall_s - due[key]
        return reply

    async with asyncio.timeout(TURN_TIMEOUT_S), asyncio.TaskGroup() as group:
        tasks = {key: group.create_task(answer(key)) for key in calls}
    return {key: task.result() for key, task in tasks.items()}, latencies


@contextmanager
def _peer_failures() -> Iterator[None]:
    """What a peer does wrong, as `PeerUnavailable`."""
    try:
        yield
    except* ArmFailed as errors:
        raise PeerUnavailable(f"failed: {errors.exceptions[0]}") from None
    except* TimeoutError:
        raise PeerUnavailable(f"did not finish within {TURN_TIMEOUT_S:g} s") from None


def _pixels(image: bytes | Pixels) -> Pixels:
    if not isinstance(image, bytes):
        return image
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))
