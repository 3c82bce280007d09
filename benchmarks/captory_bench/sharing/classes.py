"""Classes of work: a trickle of interactive items alone, and beside a bulk job that would take the whole device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

from captory_bench.measuring.arrivals import poisson_arrivals
from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import ArmFailed, Served, photo_items
from captory_bench.measuring.workload import Painting, Photo, paintings, photos
from captory_client.client import MAX_IN_FLIGHT, Client

LOAD = 0.05  # of the bulk job's rate
SPARE = 1.3  # photographs of a bulk job over those that its rate so far would take
# Batches of scenes that no other part of the benchmark takes.
ALONE_SCENES, BESIDE_SCENES, BULK_SCENES, PROBE_SCENES = 2000, 2500, 3000, 4000


class Shared(NamedTuple):
    """One round: interactive items alone and beside bulk, and bulk's images a second without and with them.

    Both times there are as many items, of the same steps, due at the same moments, but of other scenes: no cache helps.
    """

    alone_jobs: list[Painting]
    beside_jobs: list[Painting]
    alone: Outcome
    beside: Outcome
    bulk_alone_per_s: float
    bulk_beside_per_s: float


class Plan(NamedTuple):
    """What a round is made of."""

    steps: int
    num_interactive: int
    bulk_rate_per_s: float  # as measured before
    window_s: float  # of watching bulk without interactive items, before them and after
    settle_s: float  # of a bulk job, before anything is counted


@dataclass(slots=True)
class Bulk:
    """A bulk job that outlasts its round. `arrived_s` are the moments at which its images came."""

    served: Served
    photos: Sequence[Photo]
    steps: int
    arrived_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled. Raises `ArmFailed` when an item fails or the photographs run out."""
        items = photo_items(self.photos, self.steps)
        async with Client(self.served.address) as client, aclosing(client.synthesize(items)) as responses:
            async for response in responses:
                if response.WhichOneof("event") == "image":
                    self.arrived_s.append(time.perf_counter())
                elif response.WhichOneof("event") == "failure" or response.done.status.code:
                    raise ArmFailed(f"bulk: {response.item_id} failed")
        raise ArmFailed("the bulk job ended before its round: the device was faster than measured before")

    async def rate_over(self, seconds: float) -> float:
        """Images a second over the next `seconds`."""
        started_s = time.perf_counter()
        await asyncio.sleep(seconds)
        return self.rate_since(started_s)

    def rate_since(self, started_s: float) -> float:
        """Images a second from then until now."""
        return sum(at_s >= started_s for at_s in self.arrived_s) / (time.perf_counter() - started_s)


@asynccontextmanager
async def saturated(served: Served, photos: Sequence[Photo], plan: Plan) -> AsyncIterator[Bulk]:
    """The server under a bulk job that has settled; the job ends with the context. Raises `ArmFailed`."""
    bulk = Bulk(served, photos, plan.steps)
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(bulk.run())
            await asyncio.sleep(plan.settle_s)
            yield bulk
            running.cancel()
    except* ArmFailed as failed:
        raise failed.exceptions[0] from None


async def share(served: Served, plan: Plan, index: int) -> Shared:
    """One round."""
    alone_jobs, beside_jobs = _trickle(plan, ALONE_SCENES + index), _trickle(plan, BESIDE_SCENES + index)
    arrivals = poisson_arrivals(LOAD * plan.bulk_rate_per_s, plan.num_interactive, seed=index)
    duration_s = plan.settle_s + 2 * plan.window_s + arrivals[-1]
    bulk_photos = photos(ceil(SPARE * plan.bulk_rate_per_s * duration_s) + MAX_IN_FLIGHT, BULK_SCENES + index)
    alone = await served.open_loop(alone_jobs, arrivals)
    async with saturated(served, bulk_photos, plan) as bulk:
        before = await bulk.rate_over(plan.window_s)
        started_s = time.perf_counter()
        beside = await served.open_loop(beside_jobs, arrivals)
        during = bulk.rate_since(started_s)
        after = await bulk.rate_over(plan.window_s)
    return Shared(alone_jobs, beside_jobs, alone, beside, (before + after) / 2, during)


async def probe(served: Served, plan: Plan, num: int) -> list[int]:
    """Denoiser batches that end while an interactive item of one step is in a server full of bulk, its own left out.

    This is an upper bound for admission: besides batches that began before the item's own step, it counts those that
    ran beside it in other lanes, or while its text was encoded and its image decoded.
    """
    items = [replace(job, steps=1) for job in paintings(num, PROBE_SCENES)]
    bulk_photos = photos(ceil(plan.bulk_rate_per_s * (plan.settle_s + num)) + MAX_IN_FLIGHT, PROBE_SCENES)
    async with saturated(served, bulk_photos, plan):
        return [(await served.open_loop([job], [0.0])).denoiser.batches - 1 for job in items]


def _trickle(plan: Plan, scenes: int) -> list[Painting]:
    """Interactive items with the uniform job's steps."""
    return [replace(job, steps=plan.steps) for job in paintings(plan.num_interactive, scenes)]
