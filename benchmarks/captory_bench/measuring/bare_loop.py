"""The upper bound: the same graphs called directly, batch after batch, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from captory_bench.measuring.crews import Crew
from captory_bench.measuring.denoising import denoise
from captory_bench.measuring.graphs import (
    Array,
    Graphs,
    caption,
    cip_prompts,
    decode_latents,
    encode_text,
    to_pixel_values,
)
from captory_bench.measuring.outcome import Outcome, Stopwatch, merged
from captory_bench.measuring.workload import Painting, Photo

BATCH_SIZES = (4, 8, 16, 32)
TRIAL_STEPS = 8
TRIALS = 2


@dataclass(frozen=True, slots=True)
class Ready:
    """A photograph as the vision encoder takes it: decoding is no part of the bare loop."""

    photo: Photo
    pixel_values: Array


class Way(NamedTuple):
    """How fixed batches are run."""

    crew: Crew
    batch_size: int


def prepare(graphs: Graphs, photos: Sequence[Photo]) -> list[Ready]:
    """Decode and resize, outside the clock."""
    return [Ready(photo, to_pixel_values(graphs, photo.data)) for photo in photos]


def run(way: Way, ready: Sequence[Ready], steps: int) -> Outcome:
    """Caption, prompt, encode text, denoise and decode every photograph."""
    graphs, size = way.crew.graphs, way.batch_size
    negative = encode_text(graphs, [""])
    batches = [ready[start : start + size] for start in range(0, len(ready), size)]
    watch = Stopwatch()
    parts = way.crew.map(lambda batch: _run_batch(graphs, batch, steps, negative), batches)
    return merged(parts, watch.read())


def _run_batch(graphs: Graphs, batch: Sequence[Ready], steps: int, negative: Array) -> Outcome:
    outcome = Outcome()
    captions = caption(graphs, np.stack([one.pixel_values for one in batch]))
    prompts = cip_prompts(captions, [one.photo.class_name for one in batch])
    jobs = [Painting(one.photo.id, prompt, steps, one.photo.seed) for one, prompt in zip(batch, prompts, strict=True)]
    latents = denoise(graphs, jobs, encode_text(graphs, prompts), negative, outcome.denoiser)
    for job, pixels in zip(jobs, decode_latents(graphs, latents), strict=True):
        outcome.prompts[job.id], outcome.images[job.id] = job.prompt, pixels
    return outcome


def best_way(crews: Sequence[Crew], ready: Sequence[Ready]) -> Way:
    """The crew and the batch size with which the bare loop is fastest over a short schedule; all have the same work."""
    sizes = [size for size in BATCH_SIZES if size <= len(ready)] or [len(ready)]
    ways = [Way(crew, size) for crew in crews for size in sizes]
    seconds = dict.fromkeys(range(len(ways)), float("inf"))
    for _ in range(TRIALS):
        for index, way in enumerate(ways):
            seconds[index] = min(seconds[index], run(way, ready, TRIAL_STEPS).times.wall_s)
    return ways[min(seconds, key=seconds.__getitem__)]
