"""What the server asks of a pipeline: a shape, so that tests can bring their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from captory_engine.device import StageCounts
from captory_engine.info import FamilyInfo
from captory_engine.items import Event, Item


class Counted(Protocol):
    """What counts its work."""

    @property
    def counts(self) -> Mapping[str, StageCounts]:
        """By stage, in pipeline order, since the start."""
        ...


class Pipeline(Protocol):
    """A loaded family, ready to run items."""

    info: FamilyInfo

    @property
    def device(self) -> Counted:
        """Where its batches run."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether items can be run."""
        ...

    def run(self, item: Item) -> AsyncGenerator[Event, None]:
        """Events of one item, `Done` last; raises `CaptoryError` when the whole item fails. Closing it cancels."""
        ...

    def slot(self, *, wait: bool = True) -> AbstractAsyncContextManager[None]:
        """Room for one item. Waits for it, or raises `Exhausted` at once."""
        ...

    async def close(self) -> None:
        """Free the models."""
        ...
