"""State that lives across steps: rows of a few tables that a step gathers and scatters, where the session computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from threading import Lock
from typing import Any

from numpy.typing import DTypeLike

from captory_engine.errors import Exhausted
from captory_engine.sessions.arrays import HOST, Arrays


class Slots:
    """Named tables [capacity, *shape] with a free list, safe for threads that work on slots of their own.

    The tables never move, so a row can be written while another thread takes a slot.
    """

    def __init__(
        self,
        arrays: Mapping[str, tuple[tuple[int, ...], DTypeLike]],
        capacity: int,
        namespace: Arrays = HOST,
    ) -> None:
        self._tables = {name: namespace.zeros((capacity, *shape), dtype) for name, (shape, dtype) in arrays.items()}
        self._free = list(range(capacity))  # a heap: the lowest are taken first, so that those in use lie together
        self._capacity = capacity
        self._lock = Lock()

    def __getitem__(self, name: str) -> Any:
        return self._tables[name]

    @property
    def num_taken(self) -> int:
        """Slots in use."""
        return self._capacity - len(self._free)

    def take(self, **rows: Any) -> int:
        """A free slot with these rows, by table; the others are zeroed. Raises `Exhausted` when there is none.

        Whatever fails while it is written, the slot is free again.
        """
        with self._lock:
            if not self._free:
                raise Exhausted("SLOTS", f"all {self._capacity} slots are in use", retry_after_s=1.0)
            slot = heappop(self._free)
        try:
            for name, table in self._tables.items():
                table[slot] = rows.get(name, 0)
        except BaseException:
            self.give(slot)
            raise
        return slot

    def give(self, slot: int) -> None:
        """Return a slot."""
        with self._lock:
            assert slot not in self._free
            heappush(self._free, slot)


def place(slots: Sequence[int]) -> slice | list[int]:
    """What picks these slots, in ascending order, out of a table: without a copy where they follow one another."""
    first, last = slots[0], slots[-1]
    return slice(first, last + 1) if last - first == len(slots) - 1 else list(slots)
