"""`captory bench growth`: what an image costs as there are more of them, more steps, more clients.

Sweeps are gone through in turn, round after round, each on fresh items; figures are medians.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.checks import check_paintings, check_photos, fold, open_reference
from captory_bench.measuring.outcome import Agreement, Outcome, Times, merged
from captory_bench.measuring.served import Served, server_options, serving
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import Painting, paintings, photos

FIRST_ROUND = 5000  # batches of scenes
WARM_UP_ITEMS = 16
FULL_IMAGES, FULL_SWEEP = (64, 512, 4096), 256


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    subject: Subject
    images: Sequence[int] = (64, 256)
    steps: Sequence[int] = (8, 16, 32, 50)
    clients: Sequence[int] = (1, 2, 4, 8)
    num_rounds: int = 2
    num_sweep: int = 64  # images of a point of the other two sweeps
    other_steps: int = 0  # of the sweeps that do not vary them; 0: the family's default


@dataclass(slots=True)
class Measured:
    """By round, images a second: by number of images, of steps, of clients."""

    steps: int  # of the sweeps that do not vary them
    images: list[dict[int, float]] = field(default_factory=list)
    by_steps: list[dict[int, float]] = field(default_factory=list)
    clients: list[dict[int, float]] = field(default_factory=list)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    complete: bool = True

    def note(self, name: str, num: int, outcome: Outcome, agreement: Agreement) -> float:
        """Keep what was checked of one point; returns its images a second."""
        fold(self.agreement, name, agreement)
        self.complete &= len(outcome.images) == num
        return outcome.images_per_s


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all sweeps. Raises `CaptoryError`, `ClientError` or `ArmFailed`."""
    reference = open_reference(settings.subject)
    measured = Measured(settings.other_steps or reference.crew.graphs.painter.defaults.steps)
    sweeps = _Sweeps(settings, measured, reference)
    options = server_options(*settings.subject)
    async with serving(options) as served:
        await served.photos(photos(WARM_UP_ITEMS, FIRST_ROUND - 1), measured.steps)
        for index in range(settings.num_rounds):
            measured.images.append(await _sweep(settings.images, index, say, "images", sweeps.images(served)))
            measured.by_steps.append(await _sweep(settings.steps, index, say, "steps", sweeps.steps(served)))
            measured.clients.append(await _sweep(settings.clients, index, say, "clients", sweeps.clients(served)))
    return measured


Point = Callable[[int, int], Awaitable[float]]  # (value, batch of scenes) -> images a second


async def _sweep(values: Sequence[int], index: int, say: Say, name: str, point: Point) -> dict[int, float]:
    """One round of one sweep; every other round the other way round."""
    speeds = {}
    for place, value in list(enumerate(values))[:: 1 if index % 2 == 0 else -1]:
        speeds[value] = await point(value, FIRST_ROUND + len(values) * index + place)
        say(f"round {index + 1}: {value} {name}: {speeds[value]:.2f} images/s")
    return speeds


@dataclass(frozen=True, slots=True)
class _Sweeps:
    """The three points that are varied, over a server."""

    settings: Settings
    measured: Measured
    reference: Way

    def images(self, served: Served) -> Point:
        """Photographs of the uniform job."""

        async def point(num: int, scenes: int) -> float:
            items = photos(num, scenes)
            outcome = await served.photos(items, self.measured.steps)
            agreement = check_photos(self.reference, items, outcome, self.measured.steps)
            return self.measured.note(f"{num} images", num, outcome, agreement)

        return point

    def steps(self, served: Served) -> Point:
        """Prompts of equal step counts."""

        async def point(steps: int, scenes: int) -> float:
            jobs = self._prompts(scenes + 100, steps)
            outcome = await served.paintings(jobs)
            agreement = check_paintings(self.reference, jobs, outcome)
            return self.measured.note(f"{steps} steps", len(jobs), outcome, agreement)

        return point

    def clients(self, served: Served) -> Point:
        """The same number of prompts, dealt out to so many connections."""

        async def point(num: int, scenes: int) -> float:
            jobs = self._prompts(scenes + 200, self.measured.steps)
            outcome = await _dealt_out(served, jobs, num)
            agreement = check_paintings(self.reference, jobs, outcome)
            return self.measured.note(f"{num} clients", len(jobs), outcome, agreement)

        return point

    def _prompts(self, scenes: int, steps: int) -> list[Painting]:
        return [replace(job, steps=steps) for job in paintings(self.settings.num_sweep, scenes)]


async def _dealt_out(served: Served, jobs: Sequence[Painting], num_clients: int) -> Outcome:
    """Every client with a connection of its own, all at once; the slowest one's time counts."""
    parts = await asyncio.gather(*(served.paintings(jobs[place::num_clients]) for place in range(num_clients)))
    return merged(parts, Times(max(part.times.wall_s for part in parts)))
