"""Codecs off the event loop: results, errors, and callers that leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from captory_engine.codecs import Codecs


@pytest.fixture
async def codecs() -> AsyncIterator[Codecs]:
    made = Codecs(num_threads=2)
    yield made
    made.close()


async def test_each_caller_gets_its_own_result_from_another_thread(codecs: Codecs) -> None:
    def double(value: int) -> tuple[int, int]:
        return 2 * value, threading.get_ident()

    found = await asyncio.gather(*(codecs.run(double, value) for value in range(200)))
    assert [value for value, _ in found] == list(range(0, 400, 2))
    assert threading.get_ident() not in {ident for _, ident in found}


async def test_an_error_is_its_caller_s(codecs: Codecs) -> None:
    def fail() -> None:
        raise LookupError("mine")

    first, second = await asyncio.gather(codecs.run(fail), codecs.run(len, "abc"), return_exceptions=True)
    assert isinstance(first, LookupError)
    assert second == 3


async def test_who_leaves_stops_what_has_not_begun() -> None:
    codecs, begun, gate, calls = Codecs(num_threads=1), threading.Event(), threading.Event(), []

    def hold() -> None:
        begun.set()
        gate.wait()

    holding = asyncio.create_task(codecs.run(hold))
    await asyncio.to_thread(begun.wait)
    waiting = asyncio.create_task(codecs.run(calls.append, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    gate.set()
    await holding
    assert await codecs.run(len, "ab") == 2  # what follows is not held up
    assert calls == []
    codecs.close()
