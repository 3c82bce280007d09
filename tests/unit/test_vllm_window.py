"""Places for requests: who is next, and that none is lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from captory_engine.items import WorkClass
from captory_engine.vllm.window import Window

BULK, INTERACTIVE = WorkClass.BULK, WorkClass.INTERACTIVE


async def enter(window: Window, name: str, work_class: WorkClass, log: list[str]) -> None:
    async with window.place(work_class):
        log.append(name)
        await asyncio.sleep(0)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_interactive_work_is_next_and_each_class_comes_in_order() -> None:
    window, log = Window(1), list[str]()
    async with window.place(BULK):
        wanted = [("a", BULK), ("b", BULK), ("c", INTERACTIVE), ("d", INTERACTIVE)]
        tasks = [asyncio.create_task(enter(window, name, kind, log)) for name, kind in wanted]
        await settle()
        assert log == []
    await asyncio.gather(*tasks)
    assert log == ["c", "d", "a", "b"]


async def test_who_leaves_while_waiting_takes_no_place() -> None:
    window, log = Window(1), list[str]()
    async with window.place(BULK):
        leaving, staying = (asyncio.create_task(enter(window, name, BULK, log)) for name in "ab")
        await settle()
        leaving.cancel()
        await settle()
    await staying
    assert log == ["b"]


async def test_a_place_given_to_who_is_leaving_goes_on_to_the_next() -> None:
    window, log = Window(1), list[str]()
    async with AsyncExitStack() as first:
        await first.enter_async_context(window.place(BULK))
        leaving, staying = (asyncio.create_task(enter(window, name, BULK, log)) for name in "ab")
        await settle()
        await first.aclose()  # the place is the first one's now
        leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(5):
        await staying
        await enter(window, "c", BULK, log)
    assert log == ["b", "c"]
