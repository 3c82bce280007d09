"""Which calls a busy server can still finish before their deadline, learnt from those that it has finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IN_TIME = 0.95  # of a deadline: what took longer counts as late, so that few really are
FEW = 8  # calls with a deadline that are always let in: too few to judge by
LOWER = 0.9
RAISE = 0.05  # by as much work as is held
SOONEST_S = 1e-6  # the clock's grain


class Pace:
    """How much work a second calls are believed to get: what was late lowers it, what was in time raises it.

    By Little's law, work that finds `held` before it is done after held / per_s. Before anything was late nothing is
    refused. Work is counted in units of price. Up by little and down by much, as networks avoid congestion (Chiu and
    Jain 1989), and up only while there is as much work that it matters. Work is done in order of arrival, so calls with
    long deadlines, or none, may take the room that hurried ones do not find then.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._per_s = math.inf
        self._held = 0
        self._num_judged = 0
        self._excused = 0  # work that was there when the pace was lowered, and is late for the same reason

    def admits(self, units: int, deadline_s: float) -> bool:
        """Whether work that has so long would be done in time."""
        if deadline_s < SOONEST_S:
            return False
        return self._num_judged < FEW or self._held + units <= deadline_s * self._per_s

    @contextmanager
    def holding(self, units: int, deadline_s: float | None) -> Iterator[None]:
        """Count the work while the block runs, and learn from how long that was, if it had a deadline."""
        judged = deadline_s is not None
        self._held += units
        self._num_judged += judged
        found, among, arrival_s, done = self._held, self._num_judged, self._clock(), False
        try:
            yield
            done = True
        finally:
            self._held -= units
            self._num_judged -= judged
            self._excused = max(0, self._excused - units)
            if deadline_s is not None and among >= FEW:
                took_s, limit_s = max(self._clock() - arrival_s, SOONEST_S), IN_TIME * deadline_s
                if done or took_s > limit_s:  # what failed or was given up early says nothing
                    self._learn(units / found, found / took_s, found / limit_s)

    def _learn(self, share: float, per_s: float, wanted_per_s: float) -> None:
        """From work that was a `share` of what was held, and went at `per_s` where `wanted_per_s` was in time."""
        if per_s < wanted_per_s and not self._excused:
            believed_per_s = self._per_s if math.isfinite(self._per_s) else per_s
            self._per_s = min(self._per_s, LOWER * max(believed_per_s, per_s))  # a stall lowers it no further
            self._excused = self._held
        elif per_s >= wanted_per_s >= self._per_s / 2:
            self._per_s *= 1 + RAISE * share
