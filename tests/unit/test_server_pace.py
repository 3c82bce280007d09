"""How a server learns what it can finish in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from clocks import Clock

from captory_server.pace import FEW, IN_TIME, Pace

UNITS = 100
DEADLINE_S = 1.0


class Server:
    """Finishes `per_s` calls a second, in the order in which they came, refuses by its pace, and drops what is late."""

    def __init__(self, per_s: float) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.per_s = per_s
        self.waiting: list[tuple[float, ExitStack]] = []
        self.latencies_s: list[float] = []
        self.num_refused = 0
        self.num_late = 0

    def offer(self, per_s: float, seconds: float, deadline_s: float | None = DEADLINE_S) -> None:
        """Calls at an even rate, which the server works off meanwhile."""
        events = sorted([*_times(per_s, seconds, "call"), *_times(self.per_s, seconds, "done")])
        start_s = self.clock.now_s
        for at_s, what in events:
            self.clock.now_s = start_s + at_s
            self._drop_late(deadline_s)
            self._arrive(deadline_s) if what == "call" else self._finish()

    def _arrive(self, deadline_s: float | None) -> None:
        if deadline_s is not None and not self.pace.admits(UNITS, deadline_s):
            self.num_refused += 1
            return
        stack = ExitStack()
        stack.enter_context(self.pace.holding(UNITS, deadline_s))
        self.waiting.append((self.clock.now_s, stack))

    def _drop_late(self, deadline_s: float | None) -> None:
        while deadline_s is not None and self.waiting and self.clock.now_s - self.waiting[0][0] > deadline_s:
            self.num_late += 1
            with suppress(TimeoutError), self.waiting.pop(0)[1]:
                raise TimeoutError

    def _finish(self) -> None:
        if self.waiting:
            arrived_s, stack = self.waiting.pop(0)
            self.latencies_s.append(self.clock.now_s - arrived_s)
            stack.close()


def _times(per_s: float, seconds: float, what: str) -> Iterator[tuple[float, str]]:
    return ((index / per_s, what) for index in range(1, int(per_s * seconds) + 1))


def test_nothing_is_refused_while_all_is_in_time() -> None:
    server = Server(per_s=50)
    server.offer(45, seconds=20)
    assert server.num_refused == 0
    assert max(server.latencies_s) < DEADLINE_S


@pytest.mark.parametrize("times", [2, 10])
def test_more_than_can_be_done_is_refused_and_the_rest_is_in_time(times: int) -> None:
    server = Server(per_s=50)
    server.offer(50 * times, seconds=5)  # it learns
    server.latencies_s.clear()
    server.num_late = 0
    server.offer(50 * times, seconds=20)
    assert len(server.latencies_s) >= 0.9 * 50 * 20
    assert server.num_late <= 0.01 * len(server.latencies_s)


def test_a_server_that_got_slower_takes_less_and_one_that_got_faster_more() -> None:
    server = Server(per_s=50)
    for per_s in (50, 20, 50):
        server.per_s = per_s
        server.offer(500, seconds=15)
        server.latencies_s.clear()
        server.offer(500, seconds=5)
        assert len(server.latencies_s) >= 0.8 * per_s * 5


def test_a_stall_is_forgotten() -> None:
    server = Server(per_s=1)
    server.offer(500, seconds=100)
    server.per_s = 50
    server.offer(500, seconds=30)
    while server.pace.admits(UNITS, DEADLINE_S):
        server._arrive(DEADLINE_S)
    assert len(server.waiting) > 30


def test_a_call_that_has_more_time_comes_in_where_a_hurried_one_does_not() -> None:
    server = Server(per_s=50)
    server.offer(500, seconds=10)
    while server.pace.admits(UNITS, DEADLINE_S):
        server._arrive(DEADLINE_S)
    assert server.pace.admits(UNITS, 10 * DEADLINE_S)


def test_a_few_calls_are_always_let_in() -> None:
    server = Server(per_s=50)
    server.offer(500, seconds=10, deadline_s=0.1)  # in which it does five
    server.offer(0, seconds=1, deadline_s=0.1)
    assert not server.waiting
    for _ in range(FEW):
        assert server.pace.admits(UNITS, 0.1)
        server._arrive(0.1)
    assert not server.pace.admits(UNITS, 0.1)


def test_a_slow_call_of_a_few_teaches_nothing() -> None:
    server = Server(per_s=1)
    server.offer(1, seconds=20, deadline_s=0.1)
    server.per_s = 50
    server.offer(45, seconds=1)
    assert server.num_refused == 0


def test_what_fails_or_is_given_up_early_teaches_nothing() -> None:
    server = Server(per_s=50)
    server.offer(500, seconds=10)
    before = server.pace._per_s
    calls = ExitStack()
    for _ in range(2 * FEW):
        calls.enter_context(server.pace.holding(UNITS, DEADLINE_S))
    with pytest.raises(ValueError, match="given up"), calls:
        raise ValueError("given up")
    assert server.pace._per_s == before


def test_no_time_at_all_is_refused() -> None:
    assert not Server(per_s=50).pace.admits(UNITS, 0.0)


def test_calls_without_a_deadline_are_counted_but_not_judged() -> None:
    server = Server(per_s=50)
    server.offer(100, seconds=3, deadline_s=None)
    assert server.num_refused == 0
    assert max(server.latencies_s) > IN_TIME * DEADLINE_S
    assert server.pace.admits(UNITS, DEADLINE_S)
