"""From the source to work items: planned, read a few ahead in threads, and never more in flight than the window."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from captory_data.errors import ItemError
from captory_data.gallery import Gallery
from captory_data.outcomes import WorkItem
from captory_data.planning import Planned
from captory_data.source import Payload
from captory_data.summary import Progress

READ_AHEAD = 4


@dataclass(frozen=True, slots=True)
class ReadItem:
    """An item with its content, or with why there is none."""

    planned: Planned
    payload: Payload
    error: ItemError | None = None
    shown: bool = False
    thumbnail: bytes | None = None

    def work(self) -> WorkItem:
        """As it goes to the maker."""
        item, payload = self.planned.item, self.payload
        wanted = self.planned.wanted
        words = payload.image, payload.caption, payload.prompt, payload.attributes
        return WorkItem(item.key, item.class_id, item.class_name, wanted, *words)


class Feed:
    """An asynchronous iterator of work items. A failure in it ends it and is kept in `error` for the runner."""

    def __init__(
        self,
        planned: Iterator[Planned],
        gallery: Gallery,
        progress: Progress,
        window: int,
        stop: asyncio.Event,
        on_open: Callable[[ReadItem], Awaitable[None]],
        on_broken: Callable[[ReadItem], Awaitable[None]],
    ) -> None:
        self._planned = planned
        self._gallery = gallery
        self._progress = progress
        self._window = asyncio.Semaphore(window)
        self._stop = stop
        self._on_open = on_open
        self._on_broken = on_broken
        self._ahead: deque[asyncio.Task[ReadItem | None]] = deque()
        self._first: WorkItem | None = None
        self._closed = False
        self._planning = asyncio.Lock()
        self.exhausted = False
        self.cut_short = False
        self.error: Exception | None = None

    async def has_work(self) -> bool:
        """Whether there is anything to make."""
        self._first = await anext(self, None)
        return self._first is not None

    def release(self) -> None:
        """One item has left: there is room for another."""
        self._window.release()

    def close(self) -> None:
        """Stop reading."""
        self._closed = True
        for task in self._ahead:
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> WorkItem:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            read = await self._next_good()
        except Exception as error:
            self.error = error
            raise StopAsyncIteration from error
        if read is None:
            raise StopAsyncIteration
        await self._on_open(read)
        return read.work()

    async def _next_good(self) -> ReadItem | None:
        """The next item that can be used, once the window has room; None at the end or after a stop."""
        while (read := await self._head()) is not None and not self._stopped():
            if read.error is None:
                await self._window.acquire()
                if self._stopped():
                    return None
            self._ahead.popleft()
            if read.error is None:
                return read
            await self._on_broken(read)
        self.exhausted = read is None and not self.cut_short
        return None

    def _stopped(self) -> bool:
        """Whether no new item may start. Asked only when there is one."""
        self.cut_short = self.cut_short or self._stop.is_set()
        return self.cut_short or self._closed

    async def _head(self) -> ReadItem | None:
        """The first of the items being read; it stays there, so that cancelling the caller loses nothing."""
        while len(self._ahead) < READ_AHEAD:
            self._ahead.append(asyncio.create_task(self._load_next()))
        return await asyncio.shield(self._ahead[0])

    async def _load_next(self) -> ReadItem | None:
        async with self._planning:  # first come, first served: the source's order stays
            planned = await asyncio.to_thread(self._next_planned)
        return None if planned is None else await asyncio.to_thread(self._read, planned)

    def _next_planned(self) -> Planned | None:
        """The next item with something left to do; the ones before it are counted."""
        for planned in self._planned:
            if self._stopped():
                return None
            self._progress.skipped += planned.published
            self._progress.failed_before += planned.failed
            self._progress.failed += planned.failed
            self._progress.dropped += planned.dropped
            if planned.wanted:
                return planned
            self._progress.items += 1
        return None

    def _read(self, planned: Planned) -> ReadItem:
        try:
            payload = planned.item.load()
        except ItemError as error:
            return ReadItem(planned, Payload(), error)
        shown, thumbnail = self._gallery.picture(planned.item.class_id, payload)
        return ReadItem(planned, payload, None, shown, thumbnail)
