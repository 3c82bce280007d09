"""The device loop with engines of plain numbers: joining, mates, errors, cancellation, closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from captory_engine.device import Device, Need, Task
from captory_engine.errors import BadOutput, Unavailable
from captory_engine.scheduler import Profile


@dataclass(slots=True)
class CountTask(Task):
    """Counts up to `target`, one a step."""

    target: int
    count: int = 0


class Counting:
    """A step engine that counts, and remembers its batches and what it retired."""

    name = "count"

    def __init__(self, max_rows: int = 8, fault: Callable[[Sequence[CountTask]], None] | None = None) -> None:
        self.profile = Profile(max_rows)
        self.batches: list[list[int]] = []
        self.retired: list[CountTask] = []
        self._fault = fault

    def need(self, task: CountTask) -> Need:
        return Need("one", 1)

    def run(self, tasks: Sequence[CountTask]) -> int:
        self.batches.append([task.target for task in tasks])
        if self._fault:
            self._fault(tasks)
        for task in tasks:
            task.count += 1
            if task.count == task.target:
                task.result = task.count
        return len(tasks)

    def retire(self, task: CountTask) -> None:
        self.retired.append(task)


@asynccontextmanager
async def serving(engine: Counting) -> AsyncIterator[Device]:
    device = Device([engine])
    loop = asyncio.create_task(device.serve())
    yield device
    loop.cancel()
    await device.close()


async def test_tasks_of_different_lengths_ride_together() -> None:
    engine = Counting()
    async with serving(engine) as device:
        results = await asyncio.gather(*(device.submit("count", CountTask(target)) for target in (3, 1, 2)))
    assert results == [3, 1, 2]
    assert engine.batches == [[3, 1, 2], [3, 2], [3]]
    assert len(engine.retired) == 3
    assert device.num_tasks == 0


async def test_a_late_task_joins_within_one_step() -> None:
    engine = Counting()
    async with serving(engine) as device:
        slow = asyncio.create_task(device.submit("count", CountTask(50)))
        while len(engine.batches) < 3:
            await asyncio.sleep(0)
        before = len(engine.batches)
        await device.submit("count", CountTask(2))
        assert [2 in batch for batch in engine.batches[before : before + 4]].count(True) == 2
        assert not slow.done()
        await slow


async def test_a_bad_row_fails_alone_and_its_mates_lose_nothing() -> None:
    def fault(tasks: Sequence[CountTask]) -> None:
        if any(task.target == 7 for task in tasks):
            raise ValueError("a row that cannot be computed")

    engine = Counting(fault=fault)
    async with serving(engine) as device:
        good = [device.submit("count", CountTask(target)) for target in (2, 3, 4)]
        results = await asyncio.gather(*good, device.submit("count", CountTask(7)), return_exceptions=True)
    assert results[:3] == [2, 3, 4]
    assert isinstance(results[3], ValueError)
    assert len(engine.batches) <= 1 + 4 + 3  # the batch, each row alone once, and the rest together
    assert len(engine.retired) == 4


async def test_a_row_that_reports_its_own_error_fails_alone() -> None:
    def fault(tasks: Sequence[CountTask]) -> None:
        for task in tasks:
            if task.target == 9:
                task.error = BadOutput("NON_FINITE", "no number")

    engine = Counting(fault=fault)
    async with serving(engine) as device:
        results = await asyncio.gather(
            device.submit("count", CountTask(9)), device.submit("count", CountTask(2)), return_exceptions=True
        )
    assert isinstance(results[0], BadOutput)
    assert results[1] == 2
    assert engine.batches == [[9, 2], [2]]


async def test_a_cancelled_task_stops_within_two_steps() -> None:
    engine = Counting()
    async with serving(engine) as device:
        other = asyncio.create_task(device.submit("count", CountTask(60)))
        task = CountTask(1000)
        doomed = asyncio.create_task(device.submit("count", task))
        while task.count < 5:
            await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.gather(doomed, return_exceptions=True)
        seen = task.count
        await other
        assert task.count <= seen + 2
        assert device.num_tasks == 0
    assert len(engine.retired) == 2


async def test_a_thousand_cancellations_leave_nothing_behind() -> None:
    engine = Counting(max_rows=64)
    async with serving(engine) as device:
        tasks = [asyncio.create_task(device.submit("count", CountTask(1 + index % 9))) for index in range(1000)]
        for index, task in enumerate(tasks):
            if index % 3 == 0:
                task.cancel()
            if index % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        await device.submit("count", CountTask(20))
        assert device.num_tasks == 0
    joined = sum(1 for task in tasks if not task.cancelled()) + 1
    assert len(engine.retired) >= joined
    assert len({id(task) for task in engine.retired}) == len(engine.retired)


async def test_closing_fails_what_still_waits() -> None:
    device = Device([Counting()])
    waiting = asyncio.create_task(device.submit("count", CountTask(1)))
    await asyncio.sleep(0)
    await device.close()
    with pytest.raises(Unavailable):
        await waiting


async def test_counters_tell_batches_and_rows() -> None:
    engine = Counting(max_rows=2)
    async with serving(engine) as device:
        await asyncio.gather(*(device.submit("count", CountTask(2)) for _ in range(4)))
        counts = device.counts["count"]
    assert counts.useful_rows == counts.computed_rows == 8
    assert counts.batches == 4
    assert counts.batch_rows == {2: 4}
