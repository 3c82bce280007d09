"""The upper bound: the same graphs called directly, batch after batch, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from captory_bench.denoising import denoise
from captory_bench.graphs import Array, Graphs, caption, cip_prompts, decode_latents, encode_text, to_pixel_values
from captory_bench.outcome import Outcome, Stopwatch
from captory_bench.workload import Painting, Photo
from captory_engine.device import StageCounts

BATCH_SIZES = (8, 16, 32)
TRIAL_STEPS = 8
TRIALS = 2


@dataclass(frozen=True, slots=True)
class Ready:
    """A photograph as the vision encoder takes it: decoding is no part of the bare loop."""

    photo: Photo
    pixel_values: Array


def prepare(graphs: Graphs, photos: Sequence[Photo]) -> list[Ready]:
    """Decode and resize, outside the clock."""
    return [Ready(photo, to_pixel_values(graphs, photo.data)) for photo in photos]


def run(graphs: Graphs, ready: Sequence[Ready], batch_size: int, steps: int) -> Outcome:
    """Caption, prompt, encode text, denoise and decode every photograph, `batch_size` at a time."""
    outcome, counts = Outcome(), StageCounts()
    negative = encode_text(graphs, [""])
    watch = Stopwatch()
    for start in range(0, len(ready), batch_size):
        _run_batch(graphs, ready[start : start + batch_size], steps, negative, outcome, counts)
    return replace(outcome, times=watch.read(), denoiser=counts)


def _run_batch(
    graphs: Graphs, batch: Sequence[Ready], steps: int, negative: Array, outcome: Outcome, counts: StageCounts
) -> None:
    captions = caption(graphs, np.stack([one.pixel_values for one in batch]))
    prompts = cip_prompts(captions, [one.photo.class_name for one in batch])
    jobs = [Painting(one.photo.id, prompt, steps, one.photo.seed) for one, prompt in zip(batch, prompts, strict=True)]
    latents = denoise(graphs, jobs, encode_text(graphs, prompts), negative, counts)
    for job, pixels in zip(jobs, decode_latents(graphs, latents), strict=True):
        outcome.prompts[job.id], outcome.images[job.id] = job.prompt, pixels


def best_batch(graphs: Graphs, ready: Sequence[Ready]) -> int:
    """The batch size with which the bare loop is fastest over a short schedule; every size has the same work."""
    sizes = [size for size in BATCH_SIZES if size <= len(ready)] or [len(ready)]
    trial = ready[: max(sizes)]
    seconds = dict.fromkeys(sizes, float("inf"))
    for _ in range(TRIALS):
        for size in sizes:
            seconds[size] = min(seconds[size], run(graphs, trial, size, TRIAL_STEPS).times.wall_s)
    return min(sizes, key=lambda size: seconds[size])
