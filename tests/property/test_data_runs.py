"""Whole runs cut short at random: whatever the order, the failures and the stops, the dataset ends the same."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from data_fakes import MODELS, failing, finished, job_spec, photo_folder, requested, run
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import judge

from captory_data.errors import TransportError
from captory_data.outcomes import ItemDone, Outcome, Started, WorkItem

SPEC = job_spec(per_image=2, mode="rewrite")


class Chaos:
    """Answers out of order, sometimes twice, sometimes not at all, and goes away at some point."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def __call__(self, items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        yield Started(MODELS)
        queue: asyncio.Queue[WorkItem | None] = asyncio.Queue()

        async def fill() -> None:
            async for item in items:
                queue.put_nowait(item)
            queue.put_nowait(None)

        reader = asyncio.create_task(fill())
        pending: list[Outcome] = []
        try:
            ended = False
            while pending or not ended:
                if not pending or not (ended or queue.empty()):
                    item = await queue.get()
                    pending += [] if item is None else self.outcomes(item)
                    ended = item is None
                if self.random.random() < 0.02:
                    raise TransportError("gone")
                if pending:
                    yield self.take(pending)
        finally:
            reader.cancel()

    def outcomes(self, item: WorkItem) -> list[Outcome]:
        if self.random.random() < 0.1:
            return failing(item, "at_random")
        images: list[Outcome] = [finished(item, wanted.id) for wanted in item.wanted]
        return [*images, *self.random.sample(images, 1), ItemDone(item.key)]

    def take(self, pending: list[Outcome]) -> Outcome:
        """Any outcome may come first, but an item's end only after the rest of it."""
        while True:
            chosen = self.random.randrange(len(pending))
            outcome = pending[chosen]
            rest = [
                one
                for one in pending
                if one is not outcome and getattr(one, "key", None) == getattr(outcome, "key", "")
            ]
            if not (isinstance(outcome, ItemDone) and rest):
                return pending.pop(chosen)


@given(st.integers(0, 2**32), st.lists(st.none() | st.integers(0, 8), max_size=4), st.integers(1, 5))
@settings(max_examples=12)
def test_every_image_ends_up_once(seed: int, limits: list[int | None], window: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, out = photo_folder(Path(folder) / "in", per_class=4), Path(folder) / "out"
        wanted = requested(root, SPEC)
        for number, limit in enumerate(limits):
            summary = run(root, out, Chaos(seed + number), SPEC, limit=limit, window=window)  # type: ignore[arg-type]
            assert summary.error in (None, "gone")
            assert judge(out, wanted, complete=False).clean
        last = run(root, out, spec=SPEC, retry_failed=True)
        verdict = judge(out, wanted)
        assert verdict.clean
        assert verdict.published == wanted
        assert last.images + last.skipped == len(wanted)
