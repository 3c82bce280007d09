"""How long to wait between attempts, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `first_s` to `longest_s`, about `total_s` in all."""

    first_s: float = 0.1
    longest_s: float = 5.0
    total_s: float = 30.0


class Patience:
    """One run through a `Backoff`; every sign of life starts it anew."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.renew()

    def renew(self) -> None:
        """There was progress."""
        self._next_s = self._backoff.first_s
        self._left_s = self._backoff.total_s

    def next_delay_s(self) -> float | None:
        """How long to wait now; None when it has been long enough."""
        if self._left_s <= 0:
            return None
        delay_s = min(self._next_s, self._left_s)
        self._left_s -= delay_s
        self._next_s = min(self._next_s * 2, self._backoff.longest_s)
        return delay_s
