"""The job runner: source → items → results → dataset, around one asynchronous function that makes the results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from captory_data.batching import Batcher, BatchLimits
from captory_data.dataset import Batch, Dataset, open_dataset
from captory_data.errors import FatalStorageError, Reason, TransportError
from captory_data.feed import Feed, ReadItem
from captory_data.formats.base import Sample
from captory_data.gallery import Gallery
from captory_data.identity import Wanted
from captory_data.outcomes import Failure, Finished, ItemDone, Outcome, StageDone, Started, Synthesize
from captory_data.partners import with_partners
from captory_data.planning import Planned, Retry, plan_items
from captory_data.provenance import failure_row, make_record
from captory_data.report import write_report
from captory_data.rows import FailureRow, GalleryRow, RunRow
from captory_data.source import Source
from captory_data.spec import JobSpec
from captory_data.summary import JobSummary, Progress

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF"}


async def run_job(
    source: Source,
    spec: JobSpec,
    out: Path,
    synthesize: Synthesize,
    *,
    window: int = 64,
    limit: int | None = None,
    retry_failed: Retry = False,
    stop: asyncio.Event | None = None,
    progress: Callable[[Progress], None] | None = None,
    batch_limits: BatchLimits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> JobSummary:
    """Make what is still missing of the job, publish it, and say how it went.

    `window` bounds the items in flight; `limit` takes the first items in order of key; setting `stop` drains: no new
    item starts, what is in flight is finished and published. When the maker fails, what is finished is published; when
    the disk fails, nothing more is written. The summary's `error` says why, and the same call continues later.

    Raises:
        DataError: the run cannot begin, or other models or partners than before would make the images. Its `exit_code`
            is the command's.
    """
    with open_dataset(out, spec, source.classes) as dataset:
        source.classes = dataset.source_classes
        total = len(source) if limit is None else min(limit, len(source))
        stop = stop or asyncio.Event()
        run = _Run(dataset, Progress(total), stop, progress, batch_limits or BatchLimits(), clock)
        planned = plan_items(source, spec, dataset.ledger, limit=limit, retry=retry_failed)
        paired = with_partners(planned, source, spec, dataset.check_partners, stop.is_set)
        return await run.execute(paired, synthesize, window)


@dataclass(slots=True)
class _Open:
    """An item in flight: the images that have not come yet, and the picture that goes with the first that does."""

    planned: Planned
    missing: dict[str, Wanted]
    pictures: list[GalleryRow] = field(default_factory=list)


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        progress: Progress,
        stop: asyncio.Event,
        on_progress: Callable[[Progress], None] | None,
        limits: BatchLimits,
        clock: Callable[[], float],
    ) -> None:
        self._dataset = dataset
        self._spec = dataset.job.spec
        self._num_held = dataset.ledger.counts().images
        self._progress = progress
        self._stop = stop
        self._on_progress = on_progress
        self._clock = clock
        self._batcher = Batcher(self._publish, limits, clock)
        self._open: dict[str, _Open] = {}

    async def execute(self, planned: Iterator[Planned], synthesize: Synthesize, window: int) -> JobSummary:
        """The run from its first item to its report."""
        started, begin_s = datetime.now(UTC).isoformat(timespec="seconds"), self._clock()
        feed = self._feed(planned, window)
        error: str | None = None
        try:
            await self._work(feed, synthesize)
        except TransportError as failure:
            error = str(failure)
        except FatalStorageError as failure:  # what the disk holds is unknown: nothing more is written
            return self._summary(begin_s, feed.cut_short, str(failure))
        summary = self._summary(begin_s, feed.cut_short, error)
        try:
            await asyncio.to_thread(self._finish, started, summary)
        except FatalStorageError as failure:
            summary = replace(summary, error=error or str(failure))
        return summary

    def _feed(self, planned: Iterator[Planned], window: int) -> Feed:
        ledger = self._dataset.ledger
        ids = {row.position: row.id for row in self._dataset.classes}
        gallery = Gallery(len(ids), [ids.get(row.class_position) for row in ledger.gallery()])
        return Feed(planned, gallery, self._progress, window, self._stop, self._begin, self._refuse)

    async def _work(self, feed: Feed, synthesize: Synthesize) -> None:
        """Make what is to be made; whatever happens but a failing disk, publish what is finished."""
        try:
            if await feed.has_work():
                async with aclosing(synthesize(feed)) as outcomes:
                    async for outcome in outcomes:
                        await self._take(feed, outcome)
            if feed.error is not None:
                raise feed.error
            if self._open or not (feed.exhausted or feed.cut_short):
                raise TransportError(f"results ended too early, with {len(self._open)} items open")
        except FatalStorageError:
            self._batcher.give_up()
            raise
        finally:
            feed.close()
            await self._batcher.drain()

    async def _begin(self, read: ReadItem) -> None:
        """An item goes to the maker."""
        item = read.planned.item
        opened = _Open(read.planned, {wanted.id: wanted for wanted in read.planned.wanted})
        if read.shown:
            opened.pictures.append(GalleryRow(item.key, self._dataset.position(item.class_id), read.thumbnail))
        self._open[item.key] = opened
        self._progress.in_flight = len(self._open)

    async def _refuse(self, read: ReadItem) -> None:
        """An item that could not be read: every image of it fails."""
        error = read.error
        reason, message = (error.reason, error.message) if error else (Reason.UNREADABLE, "")
        rows = [failure_row(read.planned, wanted, reason, message) for wanted in read.planned.wanted]
        self._progress.items += 1
        await self._fail(rows)

    async def _take(self, feed: Feed, outcome: Outcome) -> None:
        """One outcome. Those of items and images that are not open (sent twice) are passed over."""
        if isinstance(outcome, Started):
            self._dataset.check_maker(outcome.models, outcome.backend, outcome.notice, outcome.versions)
            return
        opened = self._open.get(outcome.key)
        if opened is None:
            return
        match outcome:
            case StageDone():
                self._progress.stages[outcome.stage] += 1
            case Finished():
                await self._take_image(opened, outcome)
            case Failure():
                await self._take_failure(opened, outcome)
            case ItemDone():
                await self._take_done(opened, outcome)
                feed.release()
        self._report()

    async def _take_image(self, opened: _Open, finished: Finished) -> None:
        wanted = opened.missing.pop(finished.id, None)
        if wanted is None:
            return
        try:
            sample = self._sample(opened.planned, wanted, finished)
        except ValueError as error:
            await self._fail([failure_row(opened.planned, wanted, Reason.BAD_RESULT, str(error))])
            return
        self._progress.images += 1
        pictures, opened.pictures = opened.pictures, []
        await self._batcher.add([sample], gallery=pictures)

    async def _take_failure(self, opened: _Open, failure: Failure) -> None:
        lost = list(opened.missing) if failure.id is None else [failure.id]
        rows = [
            failure_row(opened.planned, wanted, failure.reason, failure.message, dropped=failure.dropped)
            for wanted in (opened.missing.pop(image_id, None) for image_id in lost)
            if wanted is not None
        ]
        await self._fail(rows)

    async def _take_done(self, opened: _Open, done: ItemDone) -> None:
        rest = Failure(done.key, None, Reason.INCOMPLETE, "the item ended without this image")
        await self._take_failure(opened, rest)
        del self._open[done.key]
        self._progress.in_flight = len(self._open)
        self._progress.items += 1
        self._progress.add_stages(done.stage_seconds)

    async def _fail(self, rows: list[FailureRow]) -> None:
        if rows:
            dropped = sum(row.dropped for row in rows)
            self._progress.dropped += dropped
            self._progress.failed += len(rows) - dropped
            await self._batcher.add(failures=rows)
        self._report()

    def _sample(self, planned: Planned, wanted: Wanted, finished: Finished) -> Sample:
        """The finished image with its record.

        Raises:
            ValueError: it is not an image of the wanted format, or its texts are not Unicode.
        """
        if not finished.image.startswith(MAGIC[self._spec.image_format]):
            raise ValueError(f"the result is not a {self._spec.image_format} image")
        record = make_record(self._spec, planned.item, wanted, finished)
        record.dumps().encode()
        return Sample(record, finished.image, self._dataset.position(planned.item.class_id))

    def _publish(self, batch: Batch) -> None:
        self._dataset.publish(batch)
        self._progress.published += len(batch.samples)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def _summary(self, begin_s: float, interrupted: bool, error: str | None) -> JobSummary:
        counts, seconds = self._progress, self._clock() - begin_s
        return JobSummary(
            items=counts.items,
            images=counts.published,
            failed=counts.failed,
            dropped=counts.dropped,
            skipped=counts.skipped,
            seconds=seconds,
            images_per_s=counts.published / seconds if seconds > 0 else 0.0,
            failed_before=counts.failed_before,
            images_in_all=self._num_held + counts.published,
            stage_seconds=counts.mean_stage_seconds(),
            interrupted=interrupted,
            error=error,
        )

    def _finish(self, started: str, summary: JobSummary) -> None:
        """Leave a whole dataset behind: the run's figures, the manifest, the report."""
        if summary.images:
            run = RunRow(started, summary.seconds, summary.images, self._progress.stage_totals())
            self._dataset.ledger.add_run(run)
        self._dataset.write_manifest(final=True)
        write_report(self._dataset.out, self._dataset.ledger)
