"""The bounded cache and single-flight, step by step: no sleeps, the loop is turned by hand."""

import asyncio

import pytest

from captory_engine.cache import LruCache, SingleFlight, content_key


def new_cache(max_entries: int = 3, max_bytes: int = 100) -> LruCache[bytes]:
    return LruCache[bytes](max_entries, max_bytes, len)


def test_forgets_the_least_recently_used() -> None:
    cache = new_cache()
    for key in "abc":
        cache.put(key, b"x")
    assert cache.get("a") == b"x"
    cache.put("d", b"x")
    assert [key in cache for key in "abcd"] == [True, False, True, True]


def test_counts_bytes_hits_and_misses() -> None:
    cache = new_cache()
    cache.put("a", b"x" * 60)
    cache.put("b", b"x" * 30)
    cache.put("a", b"x" * 50)
    assert (cache.num_bytes, len(cache)) == (80, 2)
    cache.put("c", b"x" * 40)
    assert (cache.num_bytes, "b" in cache) == (90, False)
    assert (cache.get("a"), cache.get("b")) == (b"x" * 50, None)
    assert (cache.num_hits, cache.num_misses) == (1, 1)


def test_does_not_keep_what_is_larger_than_itself() -> None:
    cache = new_cache()
    cache.put("a", b"x")
    cache.put("a", b"x" * 101)
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_keys_tell_parts_apart() -> None:
    keys = {content_key("ab"), content_key("a", "b"), content_key(b"ab"), content_key("ab", ""), content_key()}
    assert len(keys) == 5
    assert content_key("a", b"b") == content_key("a", b"b")


class Work:
    """Computations that end when the test says so."""

    def __init__(self) -> None:
        self.gates: list[asyncio.Future[bytes]] = []

    async def __call__(self) -> bytes:
        self.gates.append(asyncio.get_running_loop().create_future())
        return await self.gates[-1]


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_same_key_is_computed_once() -> None:
    flights, work = SingleFlight(new_cache()), Work()
    callers = [asyncio.create_task(flights.get("a", work)) for _ in range(3)]
    await turn()
    assert len(work.gates) == 1
    work.gates[0].set_result(b"done")
    assert await asyncio.gather(*callers) == [b"done"] * 3
    assert await flights.get("a", work) == b"done"
    assert len(work.gates) == 1


async def test_a_value_too_large_to_keep_still_reaches_all_who_wait() -> None:
    flights, work = SingleFlight(new_cache(max_bytes=2)), Work()
    callers = [asyncio.create_task(flights.get("a", work)) for _ in range(2)]
    await turn()
    work.gates[0].set_result(b"large")
    assert await asyncio.gather(*callers) == [b"large"] * 2
    assert len(flights.cache) == 0


async def test_a_failure_concerns_its_own_caller_only() -> None:
    flights, work = SingleFlight(new_cache()), Work()
    callers = [asyncio.create_task(flights.get("a", work)) for _ in range(3)]
    await turn()
    work.gates[0].set_exception(ValueError("no"))
    await turn()
    assert len(work.gates) == 2
    work.gates[1].set_result(b"done")
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, bytes, bytes]


async def test_a_cancelled_caller_does_not_cancel_the_others() -> None:
    flights, work = SingleFlight(new_cache()), Work()
    callers = [asyncio.create_task(flights.get("a", work)) for _ in range(3)]
    await turn()
    callers[0].cancel()
    callers[2].cancel()
    await turn()
    work.gates[1].set_result(b"done")
    assert await callers[1] == b"done"
    assert callers[0].cancelled()
    assert callers[2].cancelled()
    assert "a" in flights.cache


async def test_nothing_is_left_after_the_last_caller_fails() -> None:
    flights, work = SingleFlight(new_cache()), Work()
    caller = asyncio.create_task(flights.get("a", work))
    await turn()
    work.gates[0].set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await caller
    assert "a" not in flights.cache
    again = asyncio.create_task(flights.get("a", work))
    await turn()
    work.gates[1].set_result(b"done")
    assert await again == b"done"
