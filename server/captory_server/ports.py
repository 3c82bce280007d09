"""What the server asks of a pipeline: a shape, so that tests can bring their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from captory_engine.device import StageCounts
from captory_engine.info import FamilyInfo
from captory_engine.items import Event, Item


class Device(Protocol):
    """What does the work and counts it."""

    num_lanes: int

    @property
    def uptime_s(self) -> float:
        """Seconds since it was made."""
        ...

    @property
    def counts(self) -> Mapping[str, StageCounts]:
        """By stage, in pipeline order, since the start."""
        ...


class Pipeline(Protocol):
    """A loaded family, ready to run items."""

    info: FamilyInfo

    @property
    def device(self) -> Device:
        """Where its batches run."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether items can be run."""
        ...

    def rounds(self, item: Item) -> int:
        """How often each image of the item is painted: more than once only in a closed loop."""
        ...

    @property
    def answers(self) -> bool:
        """Whether work that comes now is begun now; what is elsewhere may be away."""
        ...

    async def live(self, item: Item, emit: Callable[[Event], object]) -> None:
        """Run one item in the caller's task; `emit` takes its events, `Done` last. Cancelling the task stops it.

        Raises `CaptoryError` when the whole item fails.
        """
        ...

    def run(self, item: Item) -> AsyncGenerator[Event, None]:
        """The events of `live`, one by one. Closing it cancels the item."""
        ...

    async def close(self) -> None:
        """Free the models."""
        ...
