"""A bounded cache by content, and single-flight over it: what two callers want at once is computed once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

V = TypeVar("V")


def content_key(*parts: str | bytes) -> str:
    """Return a key that differs whenever any part or the split into parts differs."""
    state = hashlib.sha256()
    for part in parts:
        kind, data = (b"s", part.encode("utf-8", "surrogatepass")) if isinstance(part, str) else (b"b", part)
        state.update(kind + len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def once(compute: Callable[[], Awaitable[V]]) -> Callable[[], Awaitable[V]]:
    """Return what calls `compute` when its value is first needed, and keeps it; for one caller at a time."""
    values: list[V] = []

    async def value() -> V:
        if not values:
            values.append(await compute())
        return values[0]

    return value


class LruCache(Generic[V]):
    """A map that forgets the least recently used entries past `max_entries` or `max_bytes`.

    `size_of` gives the bytes of a value; one that is larger than the whole cache is not kept. For one thread.
    """

    def __init__(self, max_entries: int, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._size_of = size_of
        self._entries: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> V | None:
        """Return the value and mark it as used; None when it is not there."""
        entry = self._entries.get(key)
        if entry is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: str, value: V) -> None:
        """Keep `value`, then forget old entries until the limits hold."""
        self._forget(key)
        size = self._size_of(value)
        if size > self.max_bytes:
            return
        self._entries[key] = (value, size)
        self.num_bytes += size
        while len(self._entries) > self.max_entries or self.num_bytes > self.max_bytes:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: str) -> None:
        _, size = self._entries.pop(key, (None, 0))
        self.num_bytes -= size


class SingleFlight(Generic[V]):
    """Reads through a cache; callers that ask for the same key at once share one computation. For one event loop."""

    def __init__(self, cache: LruCache[V]) -> None:
        self.cache = cache
        self._flights: dict[str, asyncio.Future[V]] = {}

    async def get(self, key: str, compute: Callable[[], Awaitable[V]]) -> V:
        """Return the cached value, a shared one in the making, or that of `compute`.

        A computation that fails or is cancelled concerns its own caller only: it is not kept, and those who
        waited for it compute for themselves, one of them for all.
        """
        while True:
            value = self.cache.get(key)
            if value is not None:
                return value
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, compute)
            await asyncio.wait([flight])
            if not flight.cancelled():
                return flight.result()

    async def _lead(self, key: str, compute: Callable[[], Awaitable[V]]) -> V:
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            value = await compute()
        except BaseException:
            flight.cancel()
            raise
        else:
            flight.set_result(value)
            self.cache.put(key, value)
            return value
        finally:
            del self._flights[key]
