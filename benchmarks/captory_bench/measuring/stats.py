"""What the server's device has done, as `GetStats` tells it, between two looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from captory_engine.device import StageCounts
from captory_proto.v1 import captory_pb2 as pb


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters by stage in pipeline order. `caps` are rows of a stage's batch at most; lanes run batches side by side.

    `busy_s` adds up all lanes.
    """

    stages: dict[str, StageCounts] = field(default_factory=dict)
    caps: dict[str, int] = field(default_factory=dict)
    lanes: int = 1
    uptime_s: float = 0.0
    busy_s: float = 0.0

    @property
    def busy_share(self) -> float:
        """The share of the lanes' time in which they ran graphs."""
        return self.busy_s / (self.uptime_s * self.lanes)

    def since(self, before: Stats) -> Stats:
        """What was done since an earlier look; caps are those of the later."""
        return Stats(
            {name: difference(counts, before.stages[name]) for name, counts in self.stages.items()},
            self.caps,
            self.lanes,
            self.uptime_s - before.uptime_s,
            self.busy_s - before.busy_s,
        )

    def share(self, names: Iterable[str]) -> float:
        """These stages' share of the time that all stages took."""
        return sum(self.stages[name].seconds for name in names) / sum(one.seconds for one in self.stages.values())

    def fill(self, stage: str) -> float:
        """Computed rows of a stage's batches over the rows that they may have."""
        counts = self.stages[stage]
        return counts.computed_rows / (counts.batches * self.caps[stage])


def read_stats(stats: pb.Stats) -> Stats:
    """The message as values."""
    return Stats(
        {stage.name: _read_counts(stage) for stage in stats.stages},
        {stage.name: stage.max_rows for stage in stats.stages},
        stats.lanes,
        stats.uptime_seconds,
        stats.busy_seconds,
    )


def difference(after: StageCounts, before: StageCounts) -> StageCounts:
    """What one stage did between two looks."""
    return StageCounts(
        after.batches - before.batches,
        after.useful_rows - before.useful_rows,
        after.computed_rows - before.computed_rows,
        after.seconds - before.seconds,
        after.batch_rows - before.batch_rows,
    )


def total(counts: Iterable[StageCounts]) -> StageCounts:
    """Several counters as one."""
    summed = StageCounts()
    for one in counts:
        summed.batches += one.batches
        summed.useful_rows += one.useful_rows
        summed.computed_rows += one.computed_rows
        summed.seconds += one.seconds
        summed.batch_rows.update(one.batch_rows)
    return summed


def _read_counts(stage: pb.StageStats) -> StageCounts:
    return StageCounts(
        stage.batches, stage.useful_rows, stage.computed_rows, stage.seconds, Counter(dict(stage.batch_rows))
    )
