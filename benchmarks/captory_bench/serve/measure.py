"""`captory bench serve`: all arms on the same items, interleaved in rounds, then the tail under Poisson arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median

from captory_bench.measuring import bare_loop, request_level
from captory_bench.measuring.arrivals import poisson_arrivals
from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.crews import open_crews
from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import Served, server_options, serving
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import TRIAL, WARM_UP, Painting, paintings, photos
from captory_bench.serve.arms import (
    ARMS,
    BARE_LOOP,
    FIXED_GUIDANCE,
    GROUPED_GUIDANCE,
    REQUEST_FIXED,
    REQUEST_GROUPED,
    REQUEST_SHRINKING,
    SERVED_GUIDANCE,
    SERVED_MIXED,
    SERVED_UNIFORM,
    SINGLE_GUIDANCE,
)

LOAD = 0.7  # of the measured capacity of the served arm of mixed steps and guidance
FIRST_ROUND, GUIDANCE, OPEN_LOOP = 2, 500, 1000  # batches of scenes, counting up
WARM_UP_ITEMS = 8

Arm = Callable[[], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    subject: Subject
    num_images: int = 64
    num_rounds: int = 3
    steps: int = 0  # of the uniform arms; 0: the family's default


@dataclass(slots=True)
class Measured:
    """Everything that came out: a dict of outcomes a round, and the open-loop outcomes of both contenders."""

    way: Way  # of fixed batches
    single: Way  # of images one by one
    steps: int
    rounds: list[dict[str, Outcome]] = field(default_factory=list)
    arrivals_per_s: float = 0.0
    open_loop: list[dict[str, Outcome]] = field(default_factory=list)
    open_loop_jobs: list[list[Painting]] = field(default_factory=list)


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all arms. Raises `CaptoryError`, `ClientError` or `ArmFailed`."""
    crews = open_crews(*settings.subject)
    graphs = crews[0].graphs
    trial = bare_loop.prepare(graphs, photos(settings.num_images, TRIAL))
    best, single = bare_loop.best_way(crews, trial), Way(max(crews, key=lambda crew: crew.num_workers), 1)
    measured = Measured(best, single, settings.steps or graphs.painter.defaults.steps)
    say(f"best fixed batch: {measured.way.batch_size} images, {measured.way.crew}")
    options = server_options(*settings.subject)
    async with serving(options) as served:
        await _warm_up(served, measured.steps)
        for index in range(settings.num_rounds):
            measured.rounds.append(await _round(settings, measured, served, index, say))
        capacities = [outcomes[SERVED_GUIDANCE].images_per_s for outcomes in measured.rounds]
        measured.arrivals_per_s = LOAD * median(capacities)
        for index in range(settings.num_rounds):
            await _open_loop(settings, measured, served, index, say)
    return measured


async def _warm_up(served: Served, steps: int) -> None:
    await served.photos(photos(WARM_UP_ITEMS, WARM_UP), steps)
    await served.paintings(paintings(WARM_UP_ITEMS, WARM_UP))


async def _round(settings: Settings, measured: Measured, served: Served, index: int, say: Say) -> dict[str, Outcome]:
    """All arms once, on fresh items; every other round the other way round."""
    arms = _arms(settings, measured, served, FIRST_ROUND + index)
    outcomes = {}
    for name in ARMS if index % 2 == 0 else reversed(ARMS):
        outcomes[name] = await arms[name]()
        say(f"round {index + 1}/{settings.num_rounds}: {name} {outcomes[name].images_per_s:.2f} images/s")
    return outcomes


def _arms(settings: Settings, measured: Measured, served: Served, scenes: int) -> dict[str, Arm]:
    """Every arm over one batch of scenes; those of mixed guidance over another, so that no text is encoded yet."""
    way, steps, num = measured.way, measured.steps, settings.num_images
    items, jobs = photos(num, scenes), paintings(num, scenes)
    guidance = paintings(num, GUIDANCE + scenes, mixed_guidance=True)
    ready = bare_loop.prepare(way.crew.graphs, items)
    fixed, grouped = request_level.run_fixed, request_level.run_grouped
    return {
        BARE_LOOP: lambda: asyncio.to_thread(bare_loop.run, way, ready, steps),
        SERVED_UNIFORM: lambda: served.photos(items, steps),
        SERVED_MIXED: lambda: served.paintings(jobs),
        REQUEST_FIXED: lambda: asyncio.to_thread(fixed, way, jobs),
        REQUEST_SHRINKING: lambda: asyncio.to_thread(fixed, way, jobs, shrinking=True),
        REQUEST_GROUPED: lambda: asyncio.to_thread(grouped, way, jobs),
        SERVED_GUIDANCE: lambda: served.paintings(guidance),
        FIXED_GUIDANCE: lambda: asyncio.to_thread(fixed, way, guidance),
        GROUPED_GUIDANCE: lambda: asyncio.to_thread(grouped, way, guidance),
        SINGLE_GUIDANCE: lambda: asyncio.to_thread(fixed, measured.single, guidance),
    }


async def _open_loop(settings: Settings, measured: Measured, served: Served, index: int, say: Say) -> None:
    """Both contenders for the tail, under the same arrivals of the same items, of mixed steps and guidance."""
    jobs = paintings(settings.num_images, OPEN_LOOP + index, mixed_guidance=True)
    arrivals = poisson_arrivals(measured.arrivals_per_s, len(jobs), seed=index)
    say(f"arrivals {index + 1}/{settings.num_rounds}: {measured.arrivals_per_s:.2f} images/s, step-level")
    step_level = await served.open_loop(jobs, arrivals)
    say(f"arrivals {index + 1}/{settings.num_rounds}: the same, request-level by equal parameters")
    grouped = await asyncio.to_thread(request_level.run_grouped_open_loop, measured.way, jobs, arrivals)
    measured.open_loop.append({SERVED_GUIDANCE: step_level, GROUPED_GUIDANCE: grouped})
    measured.open_loop_jobs.append(jobs)
