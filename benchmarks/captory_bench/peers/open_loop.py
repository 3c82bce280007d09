"""The highest Poisson rate that a contender sustains: its p95 latency, from the intended send, stays within a bound.

Every rate gets the same requests in the same unit arrivals, only closer together, and so does every contender. Then the
p95 grows with the rate, and a bisection finds the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from captory_bench.measuring.arrivals import percentiles, poisson_arrivals
from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.workload import Painting
from captory_bench.peers.contenders import OpenLoopContender

STEP = 1.5  # from rate to rate while one side of the edge is still unknown


class Probe(NamedTuple):
    """One run at one rate."""

    rate_per_s: float
    p95_s: float
    outcome: Outcome  # with the images, to be checked


@dataclass(slots=True)
class Search:
    """Where the edge is, as far as known: `held_per_s` is within the bound (0: none yet), `failed_per_s` is not."""

    bound_s: float
    start_per_s: float
    resolution: float
    probes: list[Probe] = field(default_factory=list)

    @property
    def held_per_s(self) -> float:
        """The highest rate below all that failed whose p95 was within the bound."""
        held = [probe.rate_per_s for probe in self.probes if probe.p95_s <= self.bound_s]
        return max((rate for rate in held if rate < self.failed_per_s), default=0.0)

    @property
    def failed_per_s(self) -> float:
        """The lowest rate whose p95 was not."""
        return min((probe.rate_per_s for probe in self.probes if probe.p95_s > self.bound_s), default=math.inf)

    @property
    def done(self) -> bool:
        """Whether both sides are known and close enough."""
        return self.failed_per_s <= self.held_per_s * (1 + self.resolution)

    @property
    def next_per_s(self) -> float:
        """The rate to try next: outwards by `STEP` until both sides are known, then between them."""
        if not self.probes:
            return self.start_per_s
        if not self.held_per_s:
            return self.failed_per_s / STEP
        if math.isinf(self.failed_per_s):
            return self.held_per_s * STEP
        return math.sqrt(self.held_per_s * self.failed_per_s)

    async def probe(self, contender: OpenLoopContender, jobs: Sequence[Painting], seed: int) -> Probe:
        """Run the next rate."""
        rate = self.next_per_s
        outcome = await contender.open_loop(jobs, poisson_arrivals(rate, len(jobs), seed))
        self.probes.append(Probe(rate, percentiles(outcome.latencies.values()).p95_s, outcome))
        return self.probes[-1]


async def capacity_at_p95(
    contenders: Mapping[str, OpenLoopContender],
    jobs_of: Callable[[int], Sequence[Painting]],
    bound_s: float,
    start_per_s: Mapping[str, float],
    *,
    resolution: float = 0.1,
    max_probes: int = 6,
    seed: int = 0,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Search]:
    """Search every contender's edge in at most `max_probes` runs each, taken in turns.

    The i-th run of each has the jobs `jobs_of(i)`: as many and with the same steps, but not the same prompts, so that
    no cache helps. A search ends early when its edge is known to `resolution`, a share of the rate.
    """
    searches = {name: Search(bound_s, start_per_s[name], resolution) for name in contenders}
    for index in range(max_probes):
        jobs = jobs_of(index)
        for name, search in searches.items():
            if not search.done:
                probe = await search.probe(contenders[name], jobs, seed)
                say(f"{name} at {probe.rate_per_s:.2f} images/s: p95 {probe.p95_s:.2f} s of {bound_s:.2f} s")
    return searches
