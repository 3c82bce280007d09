"""One writer: finished images gather into batches, and one batch at a time is published in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from captory_data.dataset import Batch
from captory_data.errors import DataError, FatalStorageError
from captory_data.formats.base import Sample
from captory_data.rows import FailureRow, GalleryRow


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is published: whichever limit is reached first. What is not published is lost with the process."""

    max_images: int = 256
    max_bytes: int = 64 << 20
    max_age_s: float = 60.0


class Batcher:
    """Collects what is finished. `publish` runs in a thread while the next batch fills; never two at once."""

    def __init__(self, publish: Callable[[Batch], None], limits: BatchLimits, clock: Callable[[], float]) -> None:
        self._publish = publish
        self._limits = limits
        self._clock = clock
        self._publishing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._broken = False
        self._start_batch()

    def _start_batch(self) -> None:
        self._samples: list[Sample] = []
        self._failures: list[FailureRow] = []
        self._gallery: list[GalleryRow] = []
        self._num_bytes = 0
        self._opened: float | None = None

    async def add(
        self,
        samples: Sequence[Sample] = (),
        failures: Sequence[FailureRow] = (),
        gallery: Sequence[GalleryRow] = (),
    ) -> None:
        """Take what is finished; wait while a full batch finds the writer busy.

        Raises:
            FatalStorageError: publishing failed.
        """
        self._samples += samples
        self._failures += failures
        self._gallery += gallery
        self._num_bytes += sum(len(sample.image) for sample in samples)
        self._opened = self._clock() if self._opened is None else self._opened
        if self._publishing is not None and self._publishing.done():
            await self._settle()
        if self._full():
            await self._turn_over()

    def _full(self) -> bool:
        limits = self._limits
        count = max(len(self._samples), len(self._failures))
        age_s = 0.0 if self._opened is None else self._clock() - self._opened
        return count >= limits.max_images or self._num_bytes >= limits.max_bytes or age_s >= limits.max_age_s

    async def _turn_over(self) -> None:
        """Hand the batch to the writer and start the next one."""
        async with self._turn:
            await self._settle()
            if self._samples or self._failures:
                batch = Batch(self._samples, self._failures, self._gallery)
                self._start_batch()
                self._publishing = asyncio.create_task(asyncio.to_thread(self._publish, batch))

    async def _settle(self) -> None:
        """Wait for the batch that is being published; a failure is final."""
        if self._broken:
            raise FatalStorageError("an earlier batch could not be published")
        task = self._publishing
        if task is None:
            return
        try:
            await asyncio.shield(task)
        except DataError:
            self._broken = True
            raise
        if self._publishing is task:
            self._publishing = None

    def give_up(self) -> None:
        """The disk has failed elsewhere: publish nothing more."""
        self._broken = True

    async def drain(self) -> None:
        """Publish all that is left, unless the disk has failed before. Afterwards nothing is being written."""
        if not self._broken:
            await self._turn_over()
            await self._settle()
        elif self._publishing is not None:
            await asyncio.wait([self._publishing])
