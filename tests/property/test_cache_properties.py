"""The cache against a plain model of it, and single-flight under any order of events."""

import asyncio
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from captory_engine.cache import LruCache, SingleFlight, content_key

KEYS = st.sampled_from("abcdef")
PARTS = st.lists(st.one_of(st.text(max_size=4), st.binary(max_size=4)), max_size=4)


@given(st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=12))), st.integers(1, 4), st.integers(1, 30))
def test_the_cache_is_an_ordered_dict_with_limits(
    operations: list[tuple[str, bytes | None]], max_entries: int, max_bytes: int
) -> None:
    cache, model = LruCache[bytes](max_entries, max_bytes, len), OrderedDict[str, bytes]()
    for key, value in operations:
        if value is None:
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        else:
            cache.put(key, value)
            model.pop(key, None)
            if len(value) <= max_bytes:
                model[key] = value
            while len(model) > max_entries or sum(map(len, model.values())) > max_bytes:
                model.popitem(last=False)
        assert len(cache) == len(model) <= max_entries
        assert cache.num_bytes == sum(map(len, model.values())) <= max_bytes


@given(PARTS, PARTS)
def test_equal_keys_mean_equal_parts(first: list[str | bytes], second: list[str | bytes]) -> None:
    assert (content_key(*first) == content_key(*second)) == (first == second)


class Runner:
    """Callers of one key, and events that end their computations in any way."""

    def __init__(self) -> None:
        self.flights = SingleFlight(LruCache[str](4, 100, len))
        self.callers: list[asyncio.Task[str]] = []
        self.gates: list[asyncio.Future[str]] = []

    async def compute(self) -> str:
        self.gates.append(asyncio.get_running_loop().create_future())
        return await self.gates[-1]

    def act(self, event: str, index: int) -> None:
        waiting = [gate for gate in self.gates if not gate.done()]
        assert len(waiting) <= 1
        if event == "call":
            self.callers.append(asyncio.create_task(self.flights.get("key", self.compute)))
        elif event == "cancel" and self.callers:
            self.callers[index % len(self.callers)].cancel()
        elif event == "finish" and waiting:
            waiting[0].set_result("value")
        elif event == "fail" and waiting:
            waiting[0].set_exception(ValueError("told so"))

    async def play(self, events: list[tuple[str, int]]) -> None:
        for event, index in events:
            self.act(event, index)
            await self.settle()
        while any(not gate.done() for gate in self.gates):
            self.act("finish", 0)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(2 * len(self.callers) + 6):
            await asyncio.sleep(0)


@given(st.lists(st.tuples(st.sampled_from(["call", "cancel", "finish", "fail"]), st.integers(0, 9)), max_size=25))
def test_every_caller_gets_the_value_its_own_failure_or_its_own_cancel(events: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        runner = Runner()
        await runner.play(events)
        assert all(caller.done() for caller in runner.callers)
        failed = [caller for caller in runner.callers if not caller.cancelled() and caller.exception()]
        told = [gate for gate in runner.gates if not gate.cancelled() and gate.exception()]
        assert len(failed) == len(told)
        cancelled = sum(caller.cancelled() for caller in runner.callers)
        assert cancelled <= sum(event == "cancel" for event, _ in events)

    asyncio.run(scenario())
