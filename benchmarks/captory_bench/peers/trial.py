"""A peer's own settings: the few that a competent user would try, and a short trial that chooses among them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

from captory_bench.measuring.workload import TRIAL, paintings, photos
from captory_bench.peers.contenders import Contender, PerRequest

TRIAL_ITEMS = 48
GROUPED = "a batch's requests of equal parameters are painted together, group after group"
TOGETHER = "a batch's requests are painted together, of whatever steps: images that have ended leave, none joins"
WAIT_S = 0.02  # for a batch to fill: requests that come together are there by then


class Setting(NamedTuple):
    """How many requests make a batch at most, how long it waits for them, and who computes it."""

    batch_size: int
    wait_s: float
    num_workers: int
    threads_a_worker: int
    together: bool = False  # as `painting` says

    def __str__(self) -> str:
        batch = f"batches of up to {self.batch_size} within {1000 * self.wait_s:g} ms"
        return f"{batch}, {self.num_workers} workers of {self.threads_a_worker} threads"


def candidates(num_threads: int, *, together: bool = False) -> list[Setting]:
    """A worker a thread, with two batch sizes, and one worker with all threads.

    A batch of mixed steps falls apart into groups, or shrinks as its images end, so a large one pays there.
    """
    shapes = (16, num_threads, 1), (32, num_threads, 1), (16, 1, num_threads)
    return list(dict.fromkeys(Setting(size, WAIT_S, workers, threads, together) for size, workers, threads in shapes))


Start = Callable[[Setting], AbstractAsyncContextManager[PerRequest]]


@asynccontextmanager
async def best_of(settings: Sequence[Setting], start: Start, steps: int) -> AsyncIterator[PerRequest]:
    """The peer with that one of the settings which was fastest on a few photographs and prompts of mixed steps."""
    seconds: dict[Setting, float] = {}
    for setting in settings:
        async with start(setting) as contender:
            seconds[setting] = await _trial_s(contender, steps)
    best = min(seconds, key=lambda setting: seconds[setting])
    others = ", ".join(f"{took:.1f} s for {setting}" for setting, took in seconds.items() if setting != best)
    async with start(best) as contender:
        await _trial_s(contender, steps)  # warm, as the others are
        how = TOGETHER if best.together else GROUPED
        took = f"its trial took {seconds[best]:.1f} s, against {others}"
        yield replace(contender, settings=f"{how}; {best}; {took}")


async def _trial_s(contender: Contender, steps: int) -> float:
    uniform = await contender.paint_photos(photos(TRIAL_ITEMS, TRIAL), steps)
    mixed = await contender.paint_all(paintings(TRIAL_ITEMS, TRIAL))
    return uniform.times.wall_s + mixed.times.wall_s
