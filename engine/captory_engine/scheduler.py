"""The policy: which engine runs which tasks next. Pure: no tensors, no threads, no clock but the one passed in.

Stages stand in pipeline order, upstream first, the most expensive (the denoiser) near the end. Work is pulled:
a stage runs when what it feeds runs short, or when its own batch is full and what it feeds has room; so the
denoiser's batch stays full, upstream runs just in time and in full batches, and no queue between them grows.
An entry that waited longer than its class of work allows goes first, whatever the batch it makes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NamedTuple

from captory_engine.items import WorkClass

# Of the classes of work.
RANKS = {WorkClass.INTERACTIVE: 0, WorkClass.BULK: 1}


class Entry(NamedTuple):
    """One task's next step; classes stand in lanes of their own, each in order of arrival.

    `rows` is what this step costs (guidance makes it two). `since_s` is when the step became runnable.
    """

    rank: int
    arrival: int
    task_id: int
    key: Hashable
    rows: int
    since_s: float
    overdue_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a stage: rows of its best batch, batches in flight, and how long a class may wait for it."""

    max_rows: int
    max_in_flight: int = 1
    max_wait_s: Mapping[WorkClass, float] = field(default_factory=lambda: Profile.waits())

    @staticmethod
    def waits(*, interactive_s: float = 0.0, bulk_s: float = 2.0) -> Mapping[WorkClass, float]:
        """How long each class may wait before it goes first; for bulk it is what interactive work may cost it."""
        return {WorkClass.INTERACTIVE: interactive_s, WorkClass.BULK: bulk_s}


class Batch(NamedTuple):
    """What to run next: task ids of one stage, all of one key."""

    stage: str
    task_ids: tuple[int, ...]
    rows: int


class StageQueue:
    """The runnable steps of one stage, kept in order; adding and removing cost what changed."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name = name
        self.profile = profile
        self.rows = 0
        self.in_flight = 0
        self._lanes: dict[tuple[Hashable, int], list[Entry]] = {}

    def add(self, entry: Entry) -> None:
        """Make a step runnable."""
        insort(self._lanes.setdefault((entry.key, entry.rank), []), entry, key=_order)
        self.rows += entry.rows

    def remove(self, entry: Entry) -> None:
        """Take a step out: it runs, or its task is gone. Unknown entries are an error of the caller."""
        lane = self._lanes[entry.key, entry.rank]
        del lane[bisect_left(lane, _order(entry), key=_order)]
        self.rows -= entry.rows
        if not lane:
            del self._lanes[entry.key, entry.rank]

    @property
    def free(self) -> bool:
        """Whether another batch may be started."""
        return self.in_flight < self.profile.max_in_flight

    @property
    def full(self) -> bool:
        """Whether the waiting rows fill a batch."""
        return self.rows >= self.profile.max_rows

    def overdue_at_s(self) -> float:
        """When the first of the lanes' heads becomes overdue; infinity when none waits."""
        return min((lane[0].overdue_s for lane in self._lanes.values()), default=float("inf"))

    def batch(self, now_s: float) -> Batch:
        """From the lane that is overdue longest, else waited longest, then from the other class's lane of its key."""
        key, rank = min(self._lanes, key=lambda name: _urgency(self._lanes[name][0], now_s))
        others = (self._lanes.get((key, other), []) for other in RANKS.values() if other != rank)
        taken = list(_fill([*self._lanes[key, rank], *chain(*others)], self.profile.max_rows))
        return Batch(self.name, tuple(entry.task_id for entry in taken), sum(entry.rows for entry in taken))


def pick(stages: Sequence[StageQueue], now_s: float) -> Batch | None:
    """The next batch to run, or None when nothing may run now."""
    runnable = [stage for stage in stages if stage.rows and stage.free]
    overdue = [stage for stage in runnable if stage.overdue_at_s() <= now_s]
    if overdue:
        return min(overdue, key=StageQueue.overdue_at_s).batch(now_s)
    wanted = [stage for stage, fed in pairwise([*stages, None]) if stage in runnable and _wanted(stage, fed)]
    chosen = wanted[:1] or runnable[-1:]
    return chosen[0].batch(now_s) if chosen else None


def _wanted(stage: StageQueue | None, fed: StageQueue | None) -> bool:
    if stage is None or fed is None:
        return stage is not None
    short = fed.rows < fed.profile.max_rows
    return short or (stage.full and fed.rows < 2 * fed.profile.max_rows)


def _urgency(head: Entry, now_s: float) -> tuple[float, float, int]:
    return (head.overdue_s if head.overdue_s <= now_s else float("inf")), head.since_s, head.arrival


def _order(entry: Entry) -> tuple[int, int, int]:
    return entry.rank, entry.arrival, entry.task_id


def _fill(lane: list[Entry], max_rows: int) -> Iterator[Entry]:
    """Entries from the head while they fit; the first always does, and a smaller one may pass one that does not."""
    room = max_rows
    for index, entry in enumerate(lane):
        if index == 0 or entry.rows <= room:
            room -= entry.rows
            yield entry
        if room <= 0:
            return
