"""Where a session's arrays live: state that lasts over steps stays there, and only what is asked for comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from captory_engine.errors import OutOfMemory
from captory_engine.sessions.base import Session

Array = NDArray[Any]


class Arrays(Protocol):
    """The few verbs that differ between array libraries; indexing and arithmetic are the same in all.

    `on_host`: whether looking at values costs nothing. Elsewhere looking waits for the device.
    """

    on_host: bool

    def guard(self) -> AbstractContextManager[None]:
        """Within it, verbs and arithmetic alike raise `OutOfMemory` for an array that finds no memory here."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array of zeros."""
        ...

    def from_host(self, array: Any) -> Any:
        """A NumPy array, or one that is already here, as an array here."""
        ...

    def to_host(self, array: Any) -> Array:
        """An array from here as NumPy's."""
        ...

    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """Arrays one after the other along the first axis."""
        ...


class HostArrays:
    """NumPy."""

    on_host = True

    @contextmanager
    def guard(self) -> Iterator[None]:
        """See `Arrays`."""
        try:
            yield
        except MemoryError as error:
            raise OutOfMemory("OUT_OF_MEMORY", "The batch does not fit the memory.") from error

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Arrays`. Pages of memory are taken when they are first written."""
        return np.zeros(shape, dtype)

    def from_host(self, array: Array) -> Array:
        """See `Arrays`."""
        return array

    def to_host(self, array: Array) -> Array:
        """See `Arrays`."""
        return array

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """See `Arrays`."""
        return np.concatenate(arrays)


HOST = HostArrays()


class DeviceSession(Session, Protocol):
    """A session with arrays of its own: `run` takes and gives those as well as NumPy's, in kind."""

    arrays: Arrays

    def computed_rows(self, rows: int) -> int:
        """Rows that a batch of `rows` costs, padding included."""
        ...


def arrays_of(session: Session | DeviceSession) -> Arrays:
    """The arrays that the session computes in."""
    arrays: Arrays = getattr(session, "arrays", HOST)
    return arrays


def computed_rows(session: Session | DeviceSession, rows: int) -> int:
    """Rows that a batch of `rows` costs in this session."""
    count: Callable[[int], int] = getattr(session, "computed_rows", int)
    return count(rows)
