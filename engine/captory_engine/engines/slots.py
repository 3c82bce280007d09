"""State that lives across steps: rows of a few arrays that a step gathers and scatters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Slots:
    """Named arrays [capacity, *shape] with a free list. Grows by doubling; admission bounds how far."""

    def __init__(self, arrays: Mapping[str, tuple[tuple[int, ...], DTypeLike]], capacity: int = 8) -> None:
        self._arrays = {name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in arrays.items()}
        self._free = list(range(capacity))[::-1]
        self._capacity = capacity

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    @property
    def num_taken(self) -> int:
        """Slots in use."""
        return self._capacity - len(self._free)

    def take(self) -> int:
        """A free slot, its rows zeroed."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        for array in self._arrays.values():
            array[slot] = 0
        return slot

    def give(self, slot: int) -> None:
        """Return a slot."""
        assert slot not in self._free
        self._free.append(slot)

    def _grow(self) -> None:
        # in place: a slot may be given back from another thread meanwhile
        self._free.extend(reversed(range(self._capacity, 2 * self._capacity)))
        self._arrays = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in self._arrays.items()}
        self._capacity *= 2
