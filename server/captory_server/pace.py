"""Which calls a busy server can still finish before their deadline, learnt from those that it has finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IN_TIME = 0.95  # of a deadline: what took longer counts as late, so that few really are
FEW = 8  # calls that are never too many: they share a batch
LOWER = 0.9
RAISE = 0.05  # by as much work as is held


class Pace:
    """How much work a second the server is believed to finish: what was late lowers it, what was in time raises it.

    By Little's law, work that finds `held` before it is done after held / per_s. Before anything was late nothing is
    refused. Work is counted in units of price. Up by little and down by much, as networks avoid congestion (Chiu and
    Jain 1989), and up only while there is as much work that it matters.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._per_s = math.inf
        self._held = 0
        self._num_held = 0
        self._excused = 0  # work that was there when the pace was lowered, and is late for the same reason

    def admits(self, units: int, deadline_s: float) -> bool:
        """Whether work that has so long would be done in time."""
        return self._num_held < FEW or self._held + units <= deadline_s * self._per_s

    @contextmanager
    def holding(self, units: int, deadline_s: float | None) -> Iterator[None]:
        """Count the work while the block runs, and learn from how long that was."""
        self._held += units
        self._num_held += 1
        found, among, arrival_s = self._held, self._num_held, self._clock()
        try:
            yield
        finally:
            self._held -= units
            self._num_held -= 1
            self._excused = max(0, self._excused - units)
            if deadline_s is not None and among > FEW:
                took_s = max(self._clock() - arrival_s, 1e-6)
                self._learn(units / found, found / took_s, found / (IN_TIME * deadline_s))

    def _learn(self, share: float, per_s: float, wanted_per_s: float) -> None:
        """From work that was a `share` of what was held, and went at `per_s` where `wanted_per_s` was in time."""
        if per_s < wanted_per_s and not self._excused:
            self._per_s = min(LOWER * self._per_s, per_s)
            self._excused = self._held
        elif per_s >= wanted_per_s >= self._per_s / 2:
            self._per_s *= 1 + RAISE * share
