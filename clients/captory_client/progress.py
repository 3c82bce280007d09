"""How a run is doing, on stderr: live on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from captory_data.summary import Progress

LINE_EVERY_S = 10.0


class Display(Protocol):
    """Shows a run's progress while its block runs."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def __call__(self, progress: Progress) -> None:
        """There is news."""

    def note(self, words: str) -> None:
        """Something that people should know."""


def open_display(*, quiet: bool) -> Display:
    """The display for this stderr."""
    if quiet:
        return Silent()
    return Live() if sys.stderr.isatty() else Lines()


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        """Nothing is shown."""

    def note(self, words: str) -> None:
        """Nothing is said."""


class Live:
    """A bar with images/s and the time that is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bar = Bar(
            TextColumn("items"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self._begin_s = self._clock()
        self._bar.start()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        words = describe(progress, self._clock() - self._begin_s)
        self._bar.update(self._task, total=progress.total_items, completed=progress.items, description=words)

    def note(self, words: str) -> None:
        """Print above the bar."""
        self._bar.console.print(words, markup=False)


class Lines:
    """A line every ten seconds, for logs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def __enter__(self) -> Self:
        self._begin_s = self._last_s = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        """Print a line if the last was long ago."""
        now_s = self._clock()
        if now_s - self._last_s >= LINE_EVERY_S:
            self._last_s = now_s
            words = describe(progress, now_s - self._begin_s)
            self.note(f"{progress.items}/{progress.total_items} items, {words}")

    def note(self, words: str) -> None:
        """Print a line."""
        print(words, file=sys.stderr, flush=True)


def describe(progress: Progress, seconds: float) -> str:
    """The counts, stage by stage, and the speed."""
    speed = progress.images / seconds if seconds > 0 else 0.0
    stages = [f"{progress.stages[stage]} {word}" for stage, word in _STAGES.items() if progress.stages[stage]]
    trouble = [
        f"{count} {word}" for count, word in ((progress.failed, "failed"), (progress.dropped, "dropped")) if count
    ]
    return ", ".join([*stages, f"{progress.images} images", *trouble, f"{speed:.1f} images/s"])


_STAGES = {"caption": "captions", "prompt": "prompts"}
