"""What a benchmark is held against: a figure, its spread, and the target that it meets or misses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """One figure beside its target. `low` and `high` are the spread over the runs that `value` is the median of."""

    name: str
    value: float
    low: float
    high: float
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the median holds the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def record(self) -> dict[str, Any]:
        """Plain values, as they stand under `targets` in a benchmark's JSON."""
        return {**asdict(self), "met": self.met}


def at_least(name: str, values: Sequence[float], bound: float, unit: str = "") -> Target:
    """A figure, by its runs, that should not be below `bound`."""
    return Target(name, median(values), min(values), max(values), bound, True, unit)


def at_most(name: str, values: Sequence[float], bound: float, unit: str = "") -> Target:
    """A figure, by its runs, that should not be above `bound`."""
    return Target(name, median(values), min(values), max(values), bound, False, unit)
