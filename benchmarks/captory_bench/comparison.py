"""`captory bench serve`: all arms on the same items, interleaved in rounds, then the tail under Poisson arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from captory_bench import bare_loop, request_level
from captory_bench.arms import (
    ARMS,
    BARE_LOOP,
    REQUEST_FIXED,
    REQUEST_GROUPED,
    REQUEST_SHRINKING,
    SERVED_MIXED,
    SERVED_UNIFORM,
)
from captory_bench.arrivals import poisson_arrivals
from captory_bench.graphs import Graphs, open_graphs
from captory_bench.outcome import Outcome
from captory_bench.served import Served, server_options, serving
from captory_bench.workload import Painting, paintings, photos

LOAD = 0.7  # of the measured capacity of the served mixed arm
WARM_UP, TRIAL, OPEN_LOOP = 0, 1, 1000  # batches of scenes; rounds count from 2
FIRST_ROUND = 2
WARM_UP_ITEMS = 8

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    repository: Path
    family: str = ""
    backend: str = "onnx"
    num_threads: int = 0
    num_images: int = 64
    num_rounds: int = 3
    steps: int = 0  # of the uniform arms; 0: the family's default


@dataclass(slots=True)
class Measured:
    """Everything that came out: a dict of outcomes a round, and the open-loop outcomes of both contenders."""

    graphs: Graphs
    batch_size: int
    steps: int
    rounds: list[dict[str, Outcome]] = field(default_factory=list)
    arrivals_per_s: float = 0.0
    open_loop: list[dict[str, Outcome]] = field(default_factory=list)
    open_loop_jobs: list[list[Painting]] = field(default_factory=list)


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all arms. Raises `CaptoryError`, `ClientError` or `ArmFailed`."""
    graphs = open_graphs(
        settings.repository, settings.family, backend=settings.backend, num_threads=settings.num_threads
    )
    steps = settings.steps or graphs.painter.defaults.steps
    trial = bare_loop.prepare(graphs, photos(settings.num_images, TRIAL))
    measured = Measured(graphs, bare_loop.best_batch(graphs, trial), steps)
    say(f"best fixed batch: {measured.batch_size} images")
    options = server_options(settings.repository, settings.family, settings.backend, settings.num_threads)
    async with serving(options) as served:
        await _warm_up(served, steps)
        for index in range(settings.num_rounds):
            measured.rounds.append(await _round(settings, measured, served, index, say))
        capacities = [outcomes[SERVED_MIXED].images_per_s for outcomes in measured.rounds]
        measured.arrivals_per_s = LOAD * median(capacities)
        for index in range(settings.num_rounds):
            await _open_loop(settings, measured, served, index, say)
    return measured


async def _warm_up(served: Served, steps: int) -> None:
    await served.photos(photos(WARM_UP_ITEMS, WARM_UP), steps)
    await served.paintings(paintings(WARM_UP_ITEMS, WARM_UP))


async def _round(settings: Settings, measured: Measured, served: Served, index: int, say: Say) -> dict[str, Outcome]:
    """All arms once, on fresh items; every other round the other way round."""
    graphs, size, steps = measured.graphs, measured.batch_size, measured.steps
    items = photos(settings.num_images, FIRST_ROUND + index)
    jobs = paintings(settings.num_images, FIRST_ROUND + index)
    ready = bare_loop.prepare(graphs, items)
    arms: dict[str, Callable[[], Awaitable[Outcome]]] = {
        BARE_LOOP: lambda: asyncio.to_thread(bare_loop.run, graphs, ready, size, steps),
        SERVED_UNIFORM: lambda: served.photos(items, steps),
        SERVED_MIXED: lambda: served.paintings(jobs),
        REQUEST_FIXED: lambda: asyncio.to_thread(request_level.run_fixed, graphs, jobs, size),
        REQUEST_SHRINKING: lambda: asyncio.to_thread(request_level.run_fixed, graphs, jobs, size, shrinking=True),
        REQUEST_GROUPED: lambda: asyncio.to_thread(request_level.run_grouped, graphs, jobs, size),
    }
    outcomes = {}
    for name in ARMS if index % 2 == 0 else reversed(ARMS):
        outcomes[name] = await arms[name]()
        say(f"round {index + 1}/{settings.num_rounds}: {name} {outcomes[name].images_per_s:.2f} images/s")
    return outcomes


async def _open_loop(settings: Settings, measured: Measured, served: Served, index: int, say: Say) -> None:
    """Both contenders for the tail, under the same arrivals of the same items."""
    graphs, size, jobs = measured.graphs, measured.batch_size, paintings(settings.num_images, OPEN_LOOP + index)
    arrivals = poisson_arrivals(measured.arrivals_per_s, len(jobs), seed=index)
    say(f"arrivals {index + 1}/{settings.num_rounds}: {measured.arrivals_per_s:.2f} images/s, step-level")
    step_level = await served.open_loop(jobs, arrivals)
    say(f"arrivals {index + 1}/{settings.num_rounds}: the same, request-level by step count")
    grouped = await asyncio.to_thread(request_level.run_grouped_open_loop, graphs, jobs, arrivals, size)
    measured.open_loop.append({SERVED_MIXED: step_level, REQUEST_GROUPED: grouped})
    measured.open_loop_jobs.append(jobs)
