"""What one run of an arm gave: images and prompts by id, how long it took, and the denoiser's counters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from captory_bench.measuring.graphs import Pixels
from captory_bench.measuring.stats import total
from captory_engine.device import StageCounts


class Times(NamedTuple):
    """What a run took. `cpu_s` is of all processes and threads that took part.

    Other work on the machine, which makes `wall_s` longer, hardly shows in `cpu_s`.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0


class Stopwatch:
    """Measures this process from the watch's making."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> Times:
        """Until now."""
        return Times(time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Images are [H, W, 3] pixels; `latencies` are seconds from the intended send, by id."""

    images: dict[str, Pixels] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    latencies: dict[str, float] = field(default_factory=dict)
    times: Times = field(default_factory=Times)
    denoiser: StageCounts = field(default_factory=StageCounts)

    @property
    def images_per_s(self) -> float:
        """Throughput of the whole run."""
        return len(self.images) / self.times.wall_s


def merged(parts: Sequence[Outcome], times: Times) -> Outcome:
    """The batches of one run as the run."""
    whole = Outcome(times=times, denoiser=total(part.denoiser for part in parts))
    for part in parts:
        whole.images.update(part.images)
        whole.prompts.update(part.prompts)
        whole.latencies.update(part.latencies)
    return whole


class Agreement(NamedTuple):
    """How far the images of two runs differ, of items that had the same prompt in both, in grey levels of 255."""

    num_compared: int
    num_other_prompts: int
    worst_mean_difference: float
    max_difference: int


def compare(one: Outcome, other: Outcome) -> Agreement:
    """Compare two runs of the same items."""
    shared = one.images.keys() & other.images.keys()
    same = [key for key in shared if one.prompts[key] == other.prompts[key]]
    differences = [np.abs(one.images[key].astype(np.int16) - other.images[key]) for key in same]
    return Agreement(
        num_compared=len(same),
        num_other_prompts=len(shared) - len(same),
        worst_mean_difference=max((float(difference.mean()) for difference in differences), default=0.0),
        max_difference=max((int(difference.max()) for difference in differences), default=0),
    )
