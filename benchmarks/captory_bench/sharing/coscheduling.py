"""Three engines on one device: how busy it is over a bulk photo job, and with what.

Ramp-up and tail are left out: the window opens at the first look at which an image has been decoded, so that every
stage runs, and closes at the last look before the job's source ran dry, so that there was always more to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import ArmFailed, Served
from captory_bench.measuring.stats import Stats
from captory_bench.measuring.workload import Photo

LOOK_EVERY_S = 0.1
PAINTER = ("text", "denoise", "vae")


class Look(NamedTuple):
    """The device's counters at a moment of the benchmark's clock."""

    at_s: float
    stats: Stats


class Job(NamedTuple):
    """A bulk job: its outcome, and what the device did in the window."""

    outcome: Outcome
    window: Stats


@dataclass(slots=True)
class _Source:
    """Photographs that know when the last of them was taken."""

    photos: Sequence[Photo]
    dry_at_s: float = float("inf")

    def __iter__(self) -> Iterator[Photo]:
        yield from self.photos
        self.dry_at_s = time.perf_counter()


async def run_job(served: Served, photos: Sequence[Photo], steps: int) -> Job:
    """Run a bulk job and look at the device meanwhile. Raises `ArmFailed` for a job that is too short to look at."""
    source, looks = _Source(photos), [Look(time.perf_counter(), await served.stats())]
    looking = asyncio.create_task(_look(served, looks))
    try:
        outcome = await served.photos(source, steps)
    finally:
        looking.cancel()
    return Job(outcome, window(looks, source.dry_at_s))


def window(looks: Sequence[Look], dry_at_s: float) -> Stats:
    """What was done between the ramp-up and the tail."""
    before = looks[0].stats.stages["vae"].batches
    inside = [look for look in looks if look.stats.stages["vae"].batches > before and look.at_s <= dry_at_s]
    if len(inside) < 2:
        raise ArmFailed("the job was over before the device was in its stride: give it more images")
    return inside[-1].stats.since(inside[0].stats)


async def _look(served: Served, looks: list[Look]) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        looks.append(Look(time.perf_counter(), await served.stats()))
