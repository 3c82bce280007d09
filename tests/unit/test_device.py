"""The device loop with engines of plain numbers: joining, mates, errors, cancellation, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from captory_engine.device import Device, Need, Task
from captory_engine.errors import BadOutput, OutOfMemory, Unavailable
from captory_engine.items import WorkClass
from captory_engine.scheduler import Profile


@dataclass(slots=True)
class CountTask(Task):
    """Counts up to `target`, one a step."""

    target: int
    count: int = 0


class Counting:
    """A step engine that counts, and remembers its batches and what it retired."""

    name = "count"

    def __init__(
        self, max_rows: int = 8, fault: Callable[[Sequence[CountTask]], None] | None = None, max_in_flight: int = 1
    ) -> None:
        self.profile = Profile(max_rows, max_in_flight)
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
async def serving(engine: Counting, num_lanes: int = 1) -> AsyncIterator[Device]:
    device = Device([engine], num_lanes=num_lanes)
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


async def test_lanes_run_batches_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=10)
    engine = Counting(max_rows=1, fault=lambda tasks: meeting.wait() and None, max_in_flight=2)
    async with serving(engine, num_lanes=2) as device:
        results = await asyncio.gather(*(device.submit("count", CountTask(3)) for _ in range(2)))
    assert results == [3, 3]  # each batch met another that ran at the same time
    assert [len(batch) for batch in engine.batches] == [1] * 6


async def begun(engine: Counting, num_batches: int) -> None:
    while len(engine.batches) < num_batches:
        await asyncio.sleep(0)


async def test_a_full_batch_stands_ready_so_that_no_lane_waits_for_the_loop() -> None:
    release = threading.Event()
    engine = Counting(max_rows=1, fault=lambda tasks: release.wait(10) and None, max_in_flight=2)
    async with serving(engine) as device:
        tasks = [asyncio.create_task(device.submit("count", CountTask(1))) for _ in range(3)]
        await begun(engine, 1)
        await asyncio.sleep(0)
        release.set()
        while len(engine.batches) < 2:  # the loop does not run meanwhile
            pass
        assert await asyncio.gather(*tasks) == [1, 1, 1]


async def test_bulk_work_that_stands_ready_gives_way_to_interactive_work() -> None:
    release = threading.Event()
    engine = Counting(max_rows=1, fault=lambda tasks: release.wait(10) and None, max_in_flight=2)
    async with serving(engine) as device:
        bulk = [asyncio.create_task(device.submit("count", CountTask(1))) for _ in range(2)]
        await begun(engine, 1)
        await asyncio.sleep(0)
        urgent = asyncio.create_task(device.submit("count", CountTask(2), WorkClass.INTERACTIVE))
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(*bulk, urgent) == [1, 1, 2]
    assert engine.batches == [[1], [2], [2], [1]]


async def test_a_task_that_leaves_while_its_batch_stands_ready_is_retired() -> None:
    release = threading.Event()
    engine = Counting(max_rows=1, fault=lambda tasks: release.wait(10) and None, max_in_flight=2)
    async with serving(engine) as device:
        first, second = (asyncio.create_task(device.submit("count", CountTask(1))) for _ in range(2))
        await begun(engine, 1)
        await asyncio.sleep(0)
        second.cancel()
        release.set()
        await asyncio.gather(first, second, return_exceptions=True)
        assert await device.submit("count", CountTask(1)) == 1
        assert device.num_tasks == 0
    assert len(engine.retired) == 3


async def test_what_does_not_fit_into_memory_runs_in_smaller_batches_from_then_on() -> None:
    def fault(tasks: Sequence[CountTask]) -> None:
        if len(tasks) > 3:
            raise OutOfMemory("OUT_OF_MEMORY", "too many rows")

    engine = Counting(fault=fault)
    async with serving(engine) as device:
        results = await asyncio.gather(*(device.submit("count", CountTask(2)) for _ in range(8)))
        assert device.counts["count"].max_rows == 2
    assert results == [2] * 8
    assert [len(batch) for batch in engine.batches] == [8, 4] + [2] * 8


async def test_one_row_that_does_not_fit_into_memory_fails() -> None:
    def fault(tasks: Sequence[CountTask]) -> None:
        raise OutOfMemory("OUT_OF_MEMORY", "too many rows")

    async with serving(Counting(fault=fault)) as device:
        with pytest.raises(OutOfMemory):
            await device.submit("count", CountTask(1))


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
