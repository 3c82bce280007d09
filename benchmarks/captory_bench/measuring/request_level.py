"""Request-level batching: a batch is formed once and stays together. In one process: no wire, no codec, no queue.

Stages: text, denoise, autoencoder. That it pays for nothing else favours it over the served arms.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.denoising import denoise, guidance_scale
from captory_bench.measuring.graphs import Array, Graphs, decode_latents, encode_text
from captory_bench.measuring.outcome import Outcome, Stopwatch, Times, merged
from captory_bench.measuring.workload import UNGUIDED, Painting

Clock = Callable[[], float]
Sleep = Callable[[float], object]


def run_fixed(way: Way, jobs: Sequence[Painting], *, shrinking: bool = False) -> Outcome:
    """Batches in the order of arrival, whatever their parameters; all wait for the longest member of theirs."""
    size = way.batch_size
    return _run(way, [jobs[start : start + size] for start in range(0, len(jobs), size)], shrinking=shrinking)


def run_grouped(way: Way, jobs: Sequence[Painting]) -> Outcome:
    """Batches of equal parameters: nobody waits for a longer member, but everybody for a batch of their kind."""
    waiting, batches = deque(jobs), []
    while waiting:
        batches.append(_take_group(way.crew.graphs, waiting, way.batch_size))
    return _run(way, batches)


def run_grouped_open_loop(
    way: Way,
    jobs: Sequence[Painting],
    arrivals_s: Sequence[float],
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Outcome:
    """`run_grouped` under arrivals. When a worker is free, the job that waited longest and its equals go at once."""
    graphs, negative = way.crew.graphs, encode_text(way.crew.graphs, [""])
    queue = _Queue(way, dict(zip((job.id for job in jobs), arrivals_s, strict=True)), deque(jobs))
    started = clock()

    def work(_: int) -> list[Outcome]:
        painted = []
        while (batch := queue.take(clock() - started)) is not None:
            if not batch:
                sleep(queue.pause_s(clock() - started))
                continue
            outcome = _paint(graphs, batch, negative)
            outcome.latencies.update({job.id: clock() - started - queue.due_s[job.id] for job in batch})
            painted.append(outcome)
        return painted

    parts = [outcome for painted in way.crew.map(work, range(way.crew.num_workers)) for outcome in painted]
    return merged(parts, Times(clock() - started))


@dataclass(slots=True)
class _Queue:
    """Jobs that come when they are due and wait for a batch. Workers share it."""

    way: Way
    due_s: dict[str, float]
    coming: deque[Painting]
    waiting: deque[Painting] = field(default_factory=deque)
    lock: Lock = field(default_factory=Lock)

    def take(self, now_s: float) -> list[Painting] | None:
        """The next batch; empty when nobody waits yet, None when nobody will."""
        with self.lock:
            while self.coming and self.due_s[self.coming[0].id] <= now_s:
                self.waiting.append(self.coming.popleft())
            if self.waiting:
                return _take_group(self.way.crew.graphs, self.waiting, self.way.batch_size)
            return [] if self.coming else None

    def pause_s(self, now_s: float) -> float:
        """How long until the next job is due."""
        with self.lock:
            return max(0.0, self.due_s[self.coming[0].id] - now_s) if self.coming else 0.0


def _run(way: Way, batches: Sequence[Sequence[Painting]], *, shrinking: bool = False) -> Outcome:
    graphs = way.crew.graphs
    negative = encode_text(graphs, [""])
    watch = Stopwatch()
    parts = way.crew.map(lambda batch: _paint(graphs, batch, negative, shrinking=shrinking), batches)
    return merged(parts, watch.read())


def _paint(graphs: Graphs, batch: Sequence[Painting], negative: Array, *, shrinking: bool = False) -> Outcome:
    """Text, denoise and decode one batch."""
    outcome = Outcome()
    text = encode_text(graphs, [job.prompt for job in batch])
    latents = denoise(graphs, batch, text, negative, outcome.denoiser, shrinking=shrinking)
    for job, pixels in zip(batch, decode_latents(graphs, latents), strict=True):
        outcome.images[job.id], outcome.prompts[job.id] = pixels, job.prompt
    return outcome


def _take_group(graphs: Graphs, waiting: deque[Painting], batch_size: int) -> list[Painting]:
    """Take the first job and, in order, its equals in steps and in being guided or not, `batch_size` at most."""

    def kind(job: Painting) -> tuple[int, bool]:
        return job.steps, guidance_scale(graphs, job) > UNGUIDED

    group = [job for job in waiting if kind(job) == kind(waiting[0])][:batch_size]
    for job in group:
        waiting.remove(job)
    return group
