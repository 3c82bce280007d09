"""The policy: which engine runs which tasks next. Pure: no tensors, no threads, no clock but the one passed in.

Classes of work share the device by weight: the class that has been given least is owed the next batch. Within a
class, a step that waited longer than it may goes first. Else work is pulled: stages stand in pipeline order, the
most expensive one (the denoiser, the neck) near the end, and those before it run when what they feed runs short; so
the neck's batches stay full, upstream runs just in time and in full batches, and no queue between them grows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

from captory_engine.items import WorkClass

# Of the classes of work, and what each is owed of a device that both want.
RANKS = {WorkClass.INTERACTIVE: 0, WorkClass.BULK: 1}
WEIGHTS = (4.0, 1.0)
# Tasks of a class that a stage holds, in full batches of all lanes.
PLACES = 4


class Entry(NamedTuple):
    """One task's next step; classes stand in lanes of their own, each in order of arrival.

    Entries compare as tuples; `task_id` counts up with arrival, so nothing after it is ever compared. `rows` is what
    this step costs (guidance makes it two). `since_s` is when the step became runnable.
    """

    rank: int
    task_id: int
    key: Hashable
    rows: int
    since_s: float
    overdue_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a stage: its best batch, batches in flight, what a row costs, and how long a class may wait.

    The `neck` is the stage whose batches are to be full; those before it feed it. `mixed_rows` bounds a batch in
    which bulk work rides along with interactive work, which it makes slower. `row_cost` is in one unit for all
    stages. Whatever is measured, `max_rows` is a multiple of `min_rows`.
    """

    max_rows: int
    max_in_flight: int = 1
    mixed_rows: int = 4
    row_cost: float = 1.0
    min_rows: int = 1
    neck: bool = False
    max_wait_s: Mapping[WorkClass, float] = field(default_factory=lambda: Profile.waits())

    @property
    def max_tasks(self) -> int:
        """Tasks of one class that the stage holds: enough for the policy to choose from, and no more."""
        return PLACES * self.max_in_flight * self.max_rows

    @property
    def max_slots(self) -> int:
        """Tasks that hold state at once: those of all classes, and those in flight whose callers have left."""
        return len(WorkClass) * self.max_tasks + self.max_in_flight * self.max_rows

    @staticmethod
    def waits(*, interactive_s: float = 0.0, bulk_s: float = 2.0) -> Mapping[WorkClass, float]:
        """How long each class may wait at a stage before it is pulled through."""
        return {WorkClass.INTERACTIVE: interactive_s, WorkClass.BULK: bulk_s}


class Batch(NamedTuple):
    """What to run next: task ids of one stage, all of one key, and the rows that each class has of it, by rank."""

    stage: str
    task_ids: tuple[int, ...]
    rows: int
    rows_of: Mapping[int, int]


class Claim(IntEnum):
    """What pulls a stage, the strongest first; the neck is what all others serve."""

    FINISHES = 0  # a full batch past the neck: its items leave
    FEEDS = 1  # a full batch of what the stages after it run short of
    NECK = 2  # a full batch
    FEEDS_PARTLY = 3
    NECK_PARTLY = 4
    FINISHES_PARTLY = 5
    RUNS_AHEAD = 6  # nothing after it runs short


class Shares:
    """What each class has been given of the device, by weight.

    Start-time fair queueing (Goyal, Vin and Cheng 1996, algorithm SFQ): a class that was away is owed nothing for it.
    """

    def __init__(self, weights: Sequence[float] = WEIGHTS) -> None:
        self._weights = weights
        self._given = [0.0] * len(weights)
        self._time = 0.0

    def owed(self, ranks: Iterable[int]) -> list[int]:
        """These classes, the one that is owed most first."""
        return sorted(ranks, key=lambda rank: (max(self._given[rank], self._time), rank))

    def charge(self, costs: Mapping[int, float]) -> None:
        """What each class, by rank, has been given in one batch."""
        starts = {rank: max(self._given[rank], self._time) for rank, cost in costs.items() if cost > 0}
        for rank, start in starts.items():
            self._given[rank] = start + costs[rank] / self._weights[rank]
        self._time = max(self._time, min(starts.values(), default=0.0))


class StageQueue:
    """The runnable steps of one stage, kept in order; adding and removing cost what changed."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name = name
        self.profile = profile
        self.max_rows = profile.max_rows
        self.rows_in_flight = 0
        self.in_flight = 0
        self._rows = [0] * len(RANKS)  # that wait, by rank
        self._lanes: dict[tuple[Hashable, int], list[Entry]] = {}

    def add(self, entry: Entry) -> None:
        """Make a step runnable."""
        insort(self._lanes.setdefault((entry.key, entry.rank), []), entry)
        self._rows[entry.rank] += entry.rows

    def remove(self, entry: Entry) -> None:
        """Take a step out: it runs, or its task is gone. Unknown entries are an error of the caller."""
        lane = self._lanes[entry.key, entry.rank]
        del lane[bisect_left(lane, entry)]
        self._rows[entry.rank] -= entry.rows
        if not lane:
            del self._lanes[entry.key, entry.rank]

    def launch(self, batch: Batch) -> None:
        """A batch of this stage has started."""
        self.in_flight += 1
        self.rows_in_flight += batch.rows

    def land(self, batch: Batch) -> None:
        """A batch of this stage has ended."""
        self.in_flight -= 1
        self.rows_in_flight -= batch.rows

    def lower(self, batch: Batch) -> None:
        """A batch was too large for the device's memory: from now on none is larger than half of it."""
        self.max_rows = min(self.max_rows, max(1, batch.rows // 2))

    @property
    def free(self) -> bool:
        """Whether another batch may be started."""
        return self.in_flight < self.profile.max_in_flight

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(self._rows)

    def full(self, rank: int) -> bool:
        """Whether the waiting rows of a class fill a batch."""
        return self._rows[rank] >= self.max_rows

    @property
    def stock(self) -> float:
        """Rows that wait or run, against all batches that may run and one to follow: below 1, the stage runs short."""
        return (self.rows + self.rows_in_flight) / (self.max_rows * (self.profile.max_in_flight + 1))

    def ranks(self) -> set[int]:
        """The classes that wait."""
        return {rank for _, rank in self._lanes}

    def overdue_at_s(self, rank: int) -> float:
        """When the first of the class's heads becomes overdue; infinity when none waits."""
        return min((lane[0].overdue_s for (_, own), lane in self._lanes.items() if own == rank), default=float("inf"))

    def batch(self, rank: int, now_s: float) -> Batch:
        """From the class's lane that is overdue longest, else waited longest; bulk may ride with interactive work."""
        key = min((key for key, own in self._lanes if own == rank), key=lambda key: self._urgency(key, rank, now_s))
        taken = list(_fill(self._lanes[key, rank], self.max_rows, at_least_one=True))
        room = min(self.profile.mixed_rows, self.max_rows) - sum(entry.rows for entry in taken)
        lower = chain(*(self._lanes.get((key, other), []) for other in RANKS.values() if other > rank))
        taken += _fill(list(lower), room, at_least_one=False)
        return self._batch_of(taken)

    def _batch_of(self, taken: Sequence[Entry]) -> Batch:
        rows_of = {rank: sum(entry.rows for entry in taken if entry.rank == rank) for rank in RANKS.values()}
        return Batch(self.name, tuple(entry.task_id for entry in taken), sum(rows_of.values()), rows_of)

    def _urgency(self, key: Hashable, rank: int, now_s: float) -> tuple[float, float, int]:
        head = self._lanes[key, rank][0]
        return (head.overdue_s if head.overdue_s <= now_s else float("inf")), head.since_s, head.task_id


def pick(stages: Sequence[StageQueue], shares: Shares, now_s: float) -> Batch | None:
    """The next batch to run, or None when nothing may run now."""
    runnable = [stage for stage in stages if stage.rows and stage.free]
    for rank in shares.owed({rank for stage in runnable for rank in stage.ranks()}):
        waiting = [stage for stage in runnable if rank in stage.ranks()]
        overdue = [stage for stage in waiting if stage.overdue_at_s(rank) <= now_s]
        if overdue:
            return min(overdue, key=lambda stage: stage.overdue_at_s(rank)).batch(rank, now_s)
        return _pulled(stages, waiting, rank).batch(rank, now_s)
    return None


def pick_ahead(stages: Sequence[StageQueue], shares: Shares, now_s: float) -> Batch | None:
    """A batch that may stand behind those that run, so that no lane waits for the loop.

    Only bulk work, and only what no later arrival could make fuller.
    """
    batch = pick(stages, shares, now_s)
    if batch is None or batch.rows_of[RANKS[WorkClass.INTERACTIVE]]:
        return None
    cap = next(stage.max_rows for stage in stages if stage.name == batch.stage)
    return batch if batch.rows >= cap - 1 else None


def _pulled(stages: Sequence[StageQueue], waiting: Sequence[StageQueue], rank: int) -> StageQueue:
    """Of the stages where work waits, the one to run; of several with equal claims the one nearest to the end."""
    neck = next((index for index, stage in enumerate(stages) if stage.profile.neck), len(stages) - 1)
    return min(reversed(waiting), key=lambda stage: _claim(stages, stage, neck, stage.full(rank)))


def _claim(stages: Sequence[StageQueue], stage: StageQueue, neck: int, full: bool) -> Claim:
    place = stages.index(stage)
    if place > neck:
        return Claim.FINISHES if full else Claim.FINISHES_PARTLY
    if place == neck:
        return Claim.NECK if full else Claim.NECK_PARTLY
    if any(fed.stock >= 1 for fed in stages[place + 1 :]):
        return Claim.RUNS_AHEAD
    return Claim.FEEDS if full else Claim.FEEDS_PARTLY


def _fill(lane: Sequence[Entry], max_rows: int, *, at_least_one: bool) -> Iterator[Entry]:
    """Entries from the head while they fit; a smaller one may pass one that does not."""
    room = max_rows
    for index, entry in enumerate(lane):
        if entry.rows <= room or (at_least_one and index == 0):
            room -= entry.rows
            yield entry
        if room <= 0:
            return
