"""Room in units, first come first served; and admission, which gives back what it takes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from clocks import Clock
from fakes import DEFAULTS, LIMITS, FakePipeline, family_info

from captory_engine.errors import Exhausted, Expired, InvalidInput
from captory_engine.items import Item, Mode, Sample, Stage
from captory_server.admission import Admission, price
from captory_server.gate import Gate
from captory_server.pace import FEW

ITEM = Item("a", DEFAULTS, (Sample(0, 0, 1), Sample(0, 1, 2)), prompt="x")
PRICE = 16 * 16 * 4 * 2


async def settle() -> None:
    """Let every task come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_came_first_goes_first_even_if_the_next_would_fit() -> None:
    gate, order = Gate(4), []

    async def come(units: int) -> None:
        await gate.enter(units)
        order.append(units)

    assert gate.try_enter(3)
    large, small = asyncio.create_task(come(2)), asyncio.create_task(come(1))
    await settle()
    assert order == []
    assert not gate.try_enter(1)
    gate.leave(3)
    await asyncio.gather(large, small)
    assert order == [2, 1]


async def test_what_is_larger_than_the_room_goes_in_alone() -> None:
    gate = Gate(2)
    await gate.enter(5)
    assert not gate.try_enter(1)
    gate.leave(5)
    assert gate.used == 0


async def test_a_cancelled_wait_takes_nothing_and_holds_nobody_up() -> None:
    gate = Gate(2)
    await gate.enter(2)
    large, small = asyncio.create_task(gate.enter(3)), asyncio.create_task(gate.enter(1))
    await settle()
    large.cancel()
    await settle()
    gate.leave(1)
    await small
    assert (gate.used, gate.num_waiting) == (2, 0)


async def test_let_in_and_cancelled_in_the_same_breath_gives_back() -> None:
    gate = Gate(1)
    await gate.enter(1)
    waiting = asyncio.create_task(gate.enter(1))
    await settle()
    gate.leave(1)
    waiting.cancel()
    await settle()
    assert gate.used == 0


def admission(pipeline: FakePipeline, **settings: Any) -> Admission:
    return Admission(
        pipeline, **{"max_item_price": 1 << 20, "max_queued_price": 1 << 20, "max_input_bytes": 1 << 20, **settings}
    )


def test_the_price_is_pixels_times_steps_times_images() -> None:
    assert price(ITEM, 1) == PRICE
    assert price(ITEM, 3) == 3 * PRICE
    assert price(replace(ITEM, parameters=replace(DEFAULTS, stop_after=Stage.CAPTION)), 3) == 1


async def test_the_drafts_of_a_closed_loop_take_room_too() -> None:
    looped = replace(ITEM, mode=Mode.CLOSED_LOOP, prompt=None, caption="x")
    for item, units in (looped, 2 * PRICE), (replace(looped, caption=None, prompt="x"), PRICE), (ITEM, PRICE):
        office = admission(FakePipeline(), max_item_price=units)
        async with office.waiting(item), office.at_once(item):
            assert office._room.used == 2 * units
        assert office._room.used == 0
        with pytest.raises(InvalidInput, match=f"is {units}, more than {units - 1}"):
            async with admission(FakePipeline(), max_item_price=units - 1).at_once(item):
                pass


async def test_an_item_above_the_price_is_refused_for_good() -> None:
    with pytest.raises(InvalidInput, match="2048"):
        async with admission(FakePipeline(), max_item_price=2047).waiting(ITEM):
            pass


async def test_what_does_not_wait_is_refused_with_a_hint() -> None:
    office = admission(FakePipeline(), max_queued_price=PRICE)
    async with office.at_once(ITEM):
        with pytest.raises(Exhausted) as refused:
            async with office.at_once(ITEM):
                pass
    assert refused.value.retry_after_s > 0
    assert office.num_admitted == office.num_released == 1


async def test_a_full_pipeline_gives_the_price_back() -> None:
    office = admission(FakePipeline(family_info(limits=replace(LIMITS, max_items=1))), max_queued_price=PRICE * 2)
    async with office.waiting(ITEM):
        with pytest.raises(Exhausted, match="all the items") as refused:
            async with office.at_once(ITEM):
                pass
    assert refused.value.retry_after_s > 0
    async with office.at_once(ITEM):
        pass
    async with office.waiting(ITEM), office._room.held(PRICE):  # the refused one has left its room
        pass


def hurried(deadline_s: float, stop_after: Stage = Stage.IMAGE) -> Item:
    return replace(ITEM, parameters=replace(DEFAULTS, deadline_s=deadline_s, stop_after=stop_after))


async def slow_office() -> Admission:
    """Which has seen more calls miss a deadline of a second than it may hold then."""
    clock = Clock()
    office = admission(FakePipeline(family_info(limits=replace(LIMITS, max_items=64))), clock=clock)
    async with AsyncExitStack() as stack:
        for _ in range(2 * FEW):
            await stack.enter_async_context(office.at_once(hurried(1.0)))
        clock.now_s += 2 * FEW
    return office


async def test_what_would_miss_its_deadline_is_refused_with_a_hint() -> None:
    office = await slow_office()
    async with AsyncExitStack() as stack:
        for _ in range(FEW):
            await stack.enter_async_context(office.at_once(hurried(1.0)))
        with pytest.raises(Exhausted, match="too busy for this deadline") as refused:
            async with office.at_once(hurried(1.0)):
                pass
        assert refused.value.retry_after_s > 0
        async with office.at_once(hurried(600.0)), office.at_once(ITEM), office.at_once(hurried(1.0, Stage.CAPTION)):
            pass
    assert office.num_admitted == office.num_released
    assert office._room.used == office._places.used == 0


async def test_captions_take_no_place_of_images() -> None:
    office = await slow_office()
    async with AsyncExitStack() as stack:
        for _ in range(2 * FEW):
            await stack.enter_async_context(office.at_once(hurried(1.0, Stage.CAPTION)))
        async with office.at_once(hurried(1.0)):
            assert office.num_admitted - office.num_released == 2 * FEW + 1


async def test_the_deadline_counts_while_an_item_waits() -> None:
    office = admission(FakePipeline(family_info(limits=replace(LIMITS, max_items=1))))
    async with office.waiting(ITEM):
        with pytest.raises(Expired):
            async with office.waiting(hurried(0.001)):
                pass
    assert office.num_admitted == office.num_released == 1
    async with office.waiting(replace(ITEM, parameters=replace(DEFAULTS, deadline_s=60.0))) as ready:
        assert ready.parameters.deadline_s is not None
        assert ready.parameters.deadline_s <= 60.0
