"""Arrivals for an open loop, and what waiting looks like in percentiles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Percentiles(NamedTuple):
    """Of latencies, in seconds."""

    p50_s: float
    p95_s: float


def poisson_arrivals(rate_per_s: float, num: int, seed: int) -> list[float]:
    """Seconds from the start at which `num` requests are to be sent; the gaps are exponential and independent."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate_per_s, num)
    return [float(at) for at in np.cumsum(gaps)]


def poisson_arrivals_within(seconds: float, num: int, seed: int) -> list[float]:
    """Arrivals of a Poisson process of which it is known that `num` come within `seconds`: the rate is exact."""
    return [float(at) for at in np.sort(np.random.default_rng(seed).uniform(0.0, seconds, num))]


def percentiles(latencies_s: Iterable[float]) -> Percentiles:
    """The median and the 95th percentile."""
    p50, p95 = np.percentile(list(latencies_s), [50, 95])
    return Percentiles(float(p50), float(p95))
