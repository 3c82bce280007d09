"""Time: what is left of the budget, what ends a run that outlasts it, and how long a call takes on a device."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

OVERRUN = 3  # exit code


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds that the whole run may take."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started_s", self.clock())

    @property
    def left_s(self) -> float:
        """What is left."""
        return self.seconds - (self.clock() - self.started_s)

    def allows(self, seconds: float) -> bool:
        """Whether so much is left."""
        return self.left_s >= seconds


def stop_after(seconds: float, save: Callable[[], None]) -> threading.Timer:
    """End the process after `seconds`, whatever it does then (a compiler cannot be interrupted), but `save` first."""

    def stop() -> None:
        try:
            save()
        finally:
            os._exit(OVERRUN)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    return timer


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seconds_of(work: Callable[[], object], device: torch.device, *, calls: int, passes: int) -> list[float]:
    """Seconds a call, one value a pass of `calls` calls, after one call that is not timed."""
    work()
    values = []
    for _ in range(passes):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait_for(device)
        values.append((time.perf_counter() - started) / calls)
    return values
