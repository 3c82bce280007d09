"""A run's figures, while it goes on and when it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

DONE, FATAL, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130


@dataclass(slots=True)
class Progress:
    """Counts so far. `images` are finished, `published` are on disk; `skipped` were published by earlier runs."""

    total_items: int
    items: int = 0
    images: int = 0
    published: int = 0
    failed: int = 0
    failed_before: int = 0
    dropped: int = 0
    skipped: int = 0
    in_flight: int = 0
    stages: Counter[str] = field(default_factory=Counter)  # items that left each stage
    stage_items: Counter[str] = field(default_factory=Counter)  # items that gave their times
    stage_seconds: dict[str, float] = field(default_factory=dict)  # summed over those items

    def add_stages(self, seconds: Mapping[str, float]) -> None:
        """Take one item's times."""
        for stage, value in seconds.items():
            self.stage_items[stage] += 1
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + value

    def mean_stage_seconds(self) -> dict[str, float]:
        """Mean seconds from an item's arrival to the end of each stage."""
        return {stage: self.stage_seconds[stage] / count for stage, count in self.stage_items.items()}

    def stage_totals(self) -> dict[str, list[float]]:
        """Items and summed seconds of each stage."""
        return {stage: [self.stage_items[stage], total] for stage, total in sorted(self.stage_seconds.items())}


@dataclass(frozen=True, slots=True)
class JobSummary:
    """How a run ended. Every image asked for is in exactly one of images, failed, dropped and skipped, unless the
    run was cut short. `failed` and `dropped` include those of earlier runs (`failed_before`) not tried again.
    `images_in_all` is what the dataset holds now, from other inputs too."""

    items: int
    images: int
    failed: int
    dropped: int
    skipped: int
    seconds: float
    images_per_s: float
    failed_before: int = 0
    images_in_all: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    error: str | None = None

    @property
    def exit_code(self) -> int:
        """The command's exit status (design.md §6)."""
        if self.error is not None:
            return FATAL
        if self.interrupted:
            return INTERRUPTED
        return SOME_FAILED if self.failed else DONE

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "exit_code": self.exit_code}
