"""Request-level batching: a batch is formed once and stays together. In one process: no wire, no codec, no queue.

Stages: text, denoise, autoencoder. That it pays for nothing else favours it over the served arms.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from captory_bench.denoising import denoise
from captory_bench.graphs import Array, Graphs, decode_latents, encode_text
from captory_bench.outcome import Outcome, Stopwatch, Times
from captory_bench.workload import Painting
from captory_engine.device import StageCounts

Clock = Callable[[], float]
Sleep = Callable[[float], object]


def run_fixed(graphs: Graphs, jobs: Sequence[Painting], batch_size: int, *, shrinking: bool = False) -> Outcome:
    """Batches in the order of arrival, whatever their steps; all wait for the longest member of theirs."""
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    return _run(graphs, batches, shrinking=shrinking)


def run_grouped(graphs: Graphs, jobs: Sequence[Painting], batch_size: int) -> Outcome:
    """Batches of equal step counts: nobody waits for a longer member, but everybody for a batch of their kind."""
    waiting, batches = deque(jobs), []
    while waiting:
        batches.append(_take_group(waiting, batch_size))
    return _run(graphs, batches)


def run_grouped_open_loop(
    graphs: Graphs,
    jobs: Sequence[Painting],
    arrivals_s: Sequence[float],
    batch_size: int,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Outcome:
    """`run_grouped` under arrivals. When the device is free, the job that waited longest and its equals go at once."""
    batcher = _Batcher(graphs)
    due = {job.id: at for job, at in zip(jobs, arrivals_s, strict=True)}
    coming, waiting = deque(jobs), deque[Painting]()
    started = clock()
    while coming or waiting:
        while coming and due[coming[0].id] <= clock() - started:
            waiting.append(coming.popleft())
        if not waiting:
            sleep(max(0.0, due[coming[0].id] - (clock() - started)))
            continue
        batch = _take_group(waiting, batch_size)
        batcher.paint(batch)
        batcher.outcome.latencies.update({job.id: clock() - started - due[job.id] for job in batch})
    return batcher.finish(Times(clock() - started))


class _Batcher:
    """Paints batches one after the other into one outcome."""

    def __init__(self, graphs: Graphs, *, shrinking: bool = False) -> None:
        self.outcome = Outcome()
        self._graphs = graphs
        self._shrinking = shrinking
        self._counts = StageCounts()
        self._negative: Array = encode_text(graphs, [""])

    def paint(self, batch: Sequence[Painting]) -> None:
        """Text, denoise and decode one batch."""
        text = encode_text(self._graphs, [job.prompt for job in batch])
        latents = denoise(self._graphs, batch, text, self._negative, self._counts, shrinking=self._shrinking)
        for job, pixels in zip(batch, decode_latents(self._graphs, latents), strict=True):
            self.outcome.images[job.id], self.outcome.prompts[job.id] = pixels, job.prompt

    def finish(self, times: Times) -> Outcome:
        """The outcome with its times and counters."""
        return replace(self.outcome, times=times, denoiser=self._counts)


def _run(graphs: Graphs, batches: Sequence[Sequence[Painting]], *, shrinking: bool = False) -> Outcome:
    batcher = _Batcher(graphs, shrinking=shrinking)
    watch = Stopwatch()
    for batch in batches:
        batcher.paint(batch)
    return batcher.finish(watch.read())


def _take_group(waiting: deque[Painting], batch_size: int) -> list[Painting]:
    """Take the first job and, in order, those of its step count, `batch_size` at most."""
    group = [job for job in waiting if job.steps == waiting[0].steps][:batch_size]
    for job in group:
        waiting.remove(job)
    return group
