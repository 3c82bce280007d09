"""Which calls a busy server can still finish before their deadline, learnt from those that it has finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

AIM = 0.7  # of a deadline: what is let in while the server is wary should be done by then
IN_TIME = 0.95  # of a deadline: what took longer counts as late
FEW = 8  # calls with a deadline that are always let in: too few to judge by
ENOUGH = 4  # calls that are finished during another: fewer tell too little of the pace
WARY_S = 10.0  # after a call was late, or was refused for it
LOWER = 0.8  # of the pace that was believed, after a late call; the others that were there then are late for the same
SLOWER = 0.95  # after one in time, during which less was finished


class Pace:
    """How much work a second is finished while there is enough of it; work is counted in units of price.

    While nothing is late nothing is refused. For a while after something was, work is let in that is done before its
    deadline at the pace that is believed, by Little's law. The pace is what was finished while a call was there that
    was in time. Work is done in order of arrival, so calls with long deadlines, or none, may take the room that hurried
    ones do not find.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._per_s = 0.0  # 0: none was seen
        self._held = 0
        self._num_judged = 0
        self._finished = 0
        self._num_finished = 0
        self._wary_until_s = clock()
        self._excused = 0  # work that was there when the pace was lowered

    def admits(self, units: int, deadline_s: float) -> bool:
        """Whether work that has so long would probably be done in time."""
        if deadline_s < 1e-6:  # the clock's grain
            return False
        if self._num_judged < FEW or self._clock() >= self._wary_until_s:
            return True
        fits = self._held + units <= AIM * deadline_s * self._per_s
        if not fits:
            self._wary_until_s = self._clock() + WARY_S
        return fits

    @contextmanager
    def holding(self, units: int, deadline_s: float | None) -> Iterator[None]:
        """Count the work while the block runs, and learn from what is finished meanwhile."""
        self._held += units
        self._num_judged += deadline_s is not None
        among, arrival_s, finished, num_finished = self._num_judged, self._clock(), self._finished, self._num_finished
        try:
            yield
            self._finished += units
            self._num_finished += 1
        finally:
            took_s, enough = self._clock() - arrival_s, self._num_finished - num_finished >= ENOUGH
            if deadline_s is not None and max(among, self._num_judged) >= FEW:
                if took_s > IN_TIME * deadline_s:
                    self._lower(took_s)
                elif enough and took_s > 0:
                    self._per_s = max((self._finished - finished) / took_s, SLOWER * self._per_s)
            self._held -= units
            self._num_judged -= deadline_s is not None
            self._excused = max(0, self._excused - units)

    def _lower(self, took_s: float) -> None:
        self._wary_until_s = self._clock() + WARY_S
        if not self._excused:
            self._excused = self._held
            self._per_s = LOWER * (self._per_s or self._held / took_s)
