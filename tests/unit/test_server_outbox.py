"""What is written together, when, and how much of it."""

from __future__ import annotations

import asyncio

from fakes import DEFAULTS

from captory_engine.items import Done, Mode, Painted, Prompted, Provenance, Sample
from captory_server.outbox import Outbox

NEVER_S = 3600.0


def painted(num_bytes: int) -> Painted:
    made = Provenance("", "p", "", Mode.CIP, Sample(0, 0, 0), DEFAULTS, "fake", {}, 1, "truncate", "", "fake")
    return Painted(b"x" * num_bytes, made)


async def test_without_batches_one_thing_is_said_a_message() -> None:
    outbox = Outbox(1 << 20, linger_s=NEVER_S)
    outbox.put("a", Prompted("p", 0, 1))
    outbox.put("a", Done(0, 0))
    outbox.close()
    kinds = []
    while await outbox.filled():
        kinds += [outbox.take()[0].WhichOneof("event")]
    assert kinds == ["prompt", "done"]


async def test_a_batch_waits_for_its_linger_and_takes_all_that_came() -> None:
    outbox = Outbox(1 << 20, linger_s=0.0)
    outbox.batches = True
    for name in ("a", "b", "c"):
        outbox.put(name, Done(0, 0))
    waiting = asyncio.ensure_future(outbox.filled())
    assert not waiting.done()
    assert await waiting
    message, said = outbox.take()
    assert (
        [response.item_id for response in message.batch.responses] == [one.item_id for one in said] == ["a", "b", "c"]
    )
    outbox.put("d", Done(0, 0))  # is due in its turn
    assert await outbox.filled()
    assert len(outbox.take()[1]) == 1


async def test_the_end_waits_for_no_linger() -> None:
    outbox = Outbox(1 << 20, linger_s=NEVER_S)
    outbox.batches = True
    outbox.put("a", Done(0, 0))
    outbox.close()
    assert await outbox.filled()
    outbox.take()
    assert not await outbox.filled()


async def test_no_batch_is_over_the_limit_but_one_that_cannot_be_less() -> None:
    outbox = Outbox(3000, linger_s=NEVER_S)
    outbox.batches = True
    for name, num_bytes in enumerate([1000, 1000, 1000, 9000, 10]):
        outbox.put(str(name), painted(num_bytes))
    outbox.close()
    batches = []
    while await outbox.filled():
        message, said = outbox.take()
        batches.append([one.item_id for one in said])
        assert len(message.batch.responses) == 1 or message.ByteSize() <= 3000 + 100
    assert batches == [["0", "1"], ["2"], ["3"], ["4"]]
