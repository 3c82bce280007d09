"""A device whose graphs run in a Triton that may be away for a while: work that waits for it holds nothing here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from captory_engine.device import Device, StepEngine, Task
from captory_engine.errors import Unreachable
from captory_engine.items import WorkClass
from captory_engine.sessions.base import Session
from captory_engine.sessions.triton_link import DOWN
from captory_engine.sessions.triton_watch import Watch


class TritonDevice(Device):
    """See `Device`. `sessions` are those that run there.

    A task that Triton went away from gives back its lane, place and slot, and begins anew when Triton answers again:
    what runs here goes on meanwhile, and a caller that leaves leaves at once.
    """

    def __init__(
        self,
        engines: Sequence[StepEngine[Any]],
        watch: Watch,
        sessions: Sequence[Session],
        *,
        patience_s: float,
        num_lanes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(engines, num_lanes=num_lanes, clock=clock)
        self._watch = watch
        self._sessions = sessions
        self._patience_s = patience_s

    @property
    def answers(self) -> bool:
        """See `Device`: whether Triton is there, with all of its models."""
        return self._watch.answers

    async def submit(self, stage: str, task: Task, work_class: WorkClass = WorkClass.BULK) -> Any:
        """See `Device`. Raises `Unreachable` for a task that has waited for Triton for `patience_s` in all."""
        patience_s = self._patience_s
        while True:
            try:
                return await super().submit(stage, copy(task), work_class)
            except Unreachable as error:
                since_s = self._clock()
                self._watch.doubt()
                if error.reason != DOWN or not await self._watch.back(patience_s):
                    raise
                patience_s -= self._clock() - since_s

    async def close(self) -> None:
        """See `Device`. Calls under way are given up: a Triton that hangs holds up nothing."""
        await self._watch.close()
        try:
            await asyncio.gather(*(asyncio.to_thread(session.close) for session in self._sessions))
        finally:
            await super().close()
