"""Which images are still to be made: the source's wishes less what the ledger knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from captory_data.dataset import open_ledger
from captory_data.errors import SpecError
from captory_data.identity import Wanted, wanted_images
from captory_data.ledger import LEDGER_NAME, Ledger
from captory_data.paging import pages
from captory_data.rows import State
from captory_data.source import Source, SourceItem
from captory_data.spec import JobSpec

PAGE_IMAGES = 500

# False: failed images are left alone; True: all failures are tried again; a text: those with this reason.
Retry = bool | str


@dataclass(frozen=True, slots=True)
class Planned:
    """One source item: the images to make now, and how many stand as published, failed or dropped."""

    item: SourceItem
    wanted: tuple[Wanted, ...]
    published: int
    failed: int
    dropped: int


@dataclass(slots=True)
class Plan:
    """A job's size, counted without doing it."""

    items: int = 0
    to_make: int = 0
    published: int = 0
    failed: int = 0
    dropped: int = 0


def plan_items(
    source: Source, spec: JobSpec, ledger: Ledger | None, *, limit: int | None = None, retry: Retry = False
) -> Iterator[Planned]:
    """Every item of the source (the first `limit` in order of key) with what is left to do."""
    page_items = max(1, PAGE_IMAGES // spec.per_image)
    for page in pages(islice(source, limit), page_items):
        wanted = [wanted_images(spec, item.key) for item in page]
        states = ledger.states([image.id for images in wanted for image in images]) if ledger else {}
        for item, images in zip(page, wanted, strict=True):
            yield _planned(item, images, states, retry)


def _planned(item: SourceItem, images: tuple[Wanted, ...], states: dict[str, State], retry: Retry) -> Planned:
    known = [states[image.id] for image in images if image.id in states and not retried(states[image.id], retry)]
    published = sum(state.published for state in known)
    dropped = sum(state.dropped for state in known)
    todo = tuple(image for image in images if image.id not in states or retried(states[image.id], retry))
    return Planned(item, todo, published, len(known) - published - dropped, dropped)


def retried(state: State, retry: Retry) -> bool:
    """Whether a failure is tried again. Drops are decisions, so only their own reason brings them back."""
    if state.published:
        return False
    return state.reason == retry if isinstance(retry, str) else retry and not state.dropped


def plan_job(source: Source, spec: JobSpec, out: Path, *, limit: int | None = None, retry: Retry = False) -> Plan:
    """What `run_job` would do, read only.

    Raises:
        SpecError: the folder was made with other parameters.
    """
    if not (out / LEDGER_NAME).exists():
        return _total(plan_items(source, spec, None, limit=limit, retry=retry))
    with open_ledger(out) as ledger:
        job = ledger.job()
        if job and (different := job.spec.difference(spec)):
            raise SpecError(f"{out} was made with other parameters: {', '.join(different)}")
        return _total(plan_items(source, spec, ledger, limit=limit, retry=retry))


def _total(planned: Iterator[Planned]) -> Plan:
    plan = Plan()
    for item in planned:
        plan.items += 1
        plan.to_make += len(item.wanted)
        plan.published += item.published
        plan.failed += item.failed
        plan.dropped += item.dropped
    return plan
