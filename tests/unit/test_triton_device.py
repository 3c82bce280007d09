"""Work whose Triton goes away: it holds nothing here, is made anew when Triton is back, and none of it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from clocks import Clock
from triton_peer import UNET, Peer, peer_of_the_unet, served

from captory_engine.device import Need, Task
from captory_engine.engines.batching import BatchRule
from captory_engine.engines.single_step import GraphTask, SingleStep
from captory_engine.errors import CaptoryError, Unavailable, Unreachable
from captory_engine.scheduler import Profile
from captory_engine.sessions.options import SessionOptions, TritonOptions
from captory_engine.sessions.registry import open_session
from captory_engine.sessions.triton_link import DOWN, SLOW
from captory_engine.sessions.triton_watch import Watch
from captory_engine.triton_device import TritonDevice

NUM_TASKS = 6


@dataclass(slots=True)
class CountTask(Task):
    """Counts up to `target`, one a step."""

    target: int
    count: int = 0


@dataclass
class Counting:
    """Counts, but for those steps at which it raises."""

    name: str
    errors: list[Exception | None] = field(default_factory=list)
    profile: Profile = field(default_factory=lambda: Profile(8))
    batches: list[list[int]] = field(default_factory=list)

    def need(self, task: CountTask) -> Need:
        return Need("one", 1)

    def run(self, tasks: Sequence[CountTask]) -> int:
        self.batches.append([task.count for task in tasks])
        if self.errors and (error := self.errors.pop(0)):
            raise error
        for task in tasks:
            task.count += 1
            if task.count == task.target:
                task.result = task.count
        return len(tasks)

    def retire(self, task: CountTask) -> None:
        """Nothing is held."""


class Switch:
    """A watch that is told what to see. What is in doubt stays so until `there` is set."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.doubted = asyncio.Event()
        self.closed = False

    def doubt(self) -> None:
        self.there.clear()
        self.doubted.set()

    async def back(self, within_s: float) -> bool:
        await self.there.wait()
        return not self.closed

    async def close(self) -> None:
        self.closed = True
        self.there.set()


class Flapping:
    """A watch over what is back after 40 seconds each time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waits_s: list[float] = []

    def doubt(self) -> None:
        """It is seen in `back`."""

    async def back(self, within_s: float) -> bool:
        self.waits_s.append(within_s)
        self.clock.now_s += min(40, within_s)
        return within_s >= 40

    async def close(self) -> None:
        """Nothing is held."""


@asynccontextmanager
async def running(
    engines: Sequence[Any], watch: Any, sessions: Sequence[Any] = (), **more: Any
) -> AsyncIterator[TritonDevice]:
    device = TritonDevice(engines, watch, sessions, patience_s=100.0, num_lanes=1, **more)
    loop = asyncio.create_task(device.serve())
    try:
        yield device
    finally:
        loop.cancel()
        await device.close()


async def test_who_waits_for_triton_holds_no_lane_and_begins_anew() -> None:
    remote, local = Counting("remote", [None, Unreachable(DOWN, "gone")]), Counting("local")
    watch = Switch()
    async with running([remote, local], watch) as device, asyncio.timeout(10):
        task = CountTask(3)
        waiting = asyncio.create_task(device.submit("remote", task))
        await watch.doubted.wait()
        assert await device.submit("local", CountTask(5)) == 5  # the only lane
        assert device.num_tasks == 0
        assert not waiting.done()
        watch.there.set()
        assert await waiting == 3
    assert remote.batches == [[0], [1], [0], [1], [2]]
    assert task.count == 0


async def test_who_leaves_while_triton_is_away_leaves_at_once() -> None:
    remote, watch = Counting("remote", [Unreachable(DOWN, "gone")]), Switch()
    async with running([remote], watch) as device, asyncio.timeout(10):
        leaving = asyncio.create_task(device.submit("remote", CountTask(1)))
        await watch.doubted.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert device.num_tasks == 0
    assert len(remote.batches) == 1


async def test_patience_is_of_all_waits_together() -> None:
    clock = Clock()
    remote, watch = Counting("remote", [Unreachable(DOWN, "gone")] * 3), Flapping(clock)
    async with running([remote], watch, clock=clock) as device, asyncio.timeout(10):
        with pytest.raises(Unreachable, match="gone"):
            await device.submit("remote", CountTask(1))
        assert watch.waits_s == [100, 60, 20]
        remote.errors = [Unreachable(DOWN, "gone")] * 2
        assert await device.submit("remote", CountTask(1)) == 1


async def test_what_took_too_long_is_not_tried_again() -> None:
    remote, watch = Counting("remote", [Unreachable(SLOW, "late")]), Switch()
    async with running([remote], watch) as device, asyncio.timeout(10):
        with pytest.raises(Unreachable, match="late"):
            await device.submit("remote", CountTask(1))
        assert watch.doubted.is_set()
        assert await device.submit("remote", CountTask(1)) == 1


@pytest.fixture
def peer() -> Peer:
    return peer_of_the_unet()


@asynccontextmanager
async def behind(peer: Peer, address: str) -> AsyncIterator[TritonDevice]:
    """A device with one stage, the peer's model, which takes whole batches."""
    options = TritonOptions(address, timeout_s=60, patience_s=60)
    watch = Watch(options, [UNET])
    await watch.connect()
    session = await asyncio.to_thread(open_session, "triton", peer.model, SessionOptions(triton=options))
    engine = SingleStep("denoise", session, Profile(NUM_TASKS), BatchRule())
    async with running([engine], watch, [session]) as device, asyncio.timeout(60):
        yield device


def row(number: int) -> GraphTask:
    return GraphTask(
        {
            "sample": np.full((8, 8, 8), number, np.float32),
            "timestep": np.array(1, np.float32),
            "encoder_hidden_states": np.zeros((64, 128), np.float32),
        }
    )


async def all_of(device: TritonDevice) -> list[float | str]:
    """What becomes of each task: what its row was doubled to, or the reason of its error."""

    async def one(number: int) -> float | str:
        try:
            return float((await device.submit("denoise", row(number)))["out_sample"].mean())
        except CaptoryError as error:
            return error.reason

    return list(await asyncio.gather(*map(one, range(NUM_TASKS))))


DOUBLED = [2.0 * number for number in range(NUM_TASKS)]


async def until(device: TritonDevice, *, answers: bool) -> None:
    while device.answers is not answers:
        await asyncio.sleep(0)


async def test_killed_and_back(peer: Peer) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        address = first.enter_context(served(peer))
        async with behind(peer, address) as device:
            assert await all_of(device) == DOUBLED
            first.close()
            work = asyncio.create_task(all_of(device))
            await until(device, answers=False)
            stack.enter_context(served(peer, int(address.rpartition(":")[2])))
            assert await work == DOUBLED
            assert device.answers


async def test_that_nobody_is_there_is_seen_without_a_call(peer: Peer) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        address = first.enter_context(served(peer))
        async with behind(peer, address) as device:
            assert device.answers
            first.close()
            await until(device, answers=False)
            stack.enter_context(served(peer, int(address.rpartition(":")[2])))
            await until(device, answers=True)
    assert not peer.requests


async def test_unloaded_and_loaded_again(peer: Peer) -> None:
    with served(peer) as address:
        async with behind(peer, address) as device:
            peer.faults, peer.ready = [grpc.StatusCode.NOT_FOUND], False
            work = asyncio.create_task(all_of(device))
            await until(device, answers=False)
            peer.ready = True
            assert await work == DOUBLED


@pytest.mark.parametrize(("num_short", "num_lost"), [(1, 0), (2, 1)])
async def test_a_wrong_shape_costs_only_the_row_that_has_it_alone(peer: Peer, num_short: int, num_lost: int) -> None:
    """The batch is run again row by row, and a row is given up when that fails, too."""
    with served(peer) as address:
        async with behind(peer, address) as device:
            peer.faults = ["short"] * num_short
            found = await all_of(device)
            assert await all_of(device) == DOUBLED
    assert found.count("WRONG_SHAPE") == num_lost
    assert [one for one in found if one != "WRONG_SHAPE"] == [
        two for one, two in zip(found, DOUBLED, strict=True) if one != "WRONG_SHAPE"
    ]


async def test_too_slow_is_a_reason_and_the_next_go_on(peer: Peer) -> None:
    with served(peer) as address:
        async with behind(peer, address) as device:
            peer.faults = [grpc.StatusCode.DEADLINE_EXCEEDED]
            assert await all_of(device) == [SLOW] * NUM_TASKS
            assert await all_of(device) == DOUBLED


async def test_closing_waits_neither_for_a_triton_that_hangs_nor_for_one_that_is_away(peer: Peer) -> None:
    with served(peer) as address:
        async with behind(peer, address) as device:
            peer.faults = ["hang"]
            hung = asyncio.create_task(all_of(device))
            await asyncio.to_thread(peer.asked.wait)
    assert set(await hung) <= {"CLOSED", "SESSION_CLOSED"}
    watch = Switch()
    async with running([Counting("remote", [Unreachable(DOWN, "gone")])], watch) as device:
        away = asyncio.create_task(device.submit("remote", CountTask(1)))
        await watch.doubted.wait()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(away, 10)
