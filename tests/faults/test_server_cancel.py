"""F7: whatever is cancelled, whenever: what was admitted is released."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fakes import FakePipeline, Running, png, serve
from grpc import aio

from captory_proto.v1 import captory_pb2 as pb

NUM_CALLS = 150


async def hurt(running: Running, chance: random.Random) -> None:
    """One call that is left in one of many ways."""
    way = chance.choice(["item", "call", "deadline", "unary", "read-one", "finish"])
    if way == "unary":
        call: Any = running.stub.Generate(pb.GenerateRequest(prompt="x", parameters=pb.Parameters(n=3)))
        return await leave(call, chance)
    call = running.stub.Synthesize(timeout=chance.uniform(0.001, 0.05) if way == "deadline" else None)
    try:
        await talk(call, way, chance)
    except (asyncio.CancelledError, asyncio.InvalidStateError):
        pass
    except aio.AioRpcError as error:
        if error.details() == "internal error":  # the server's words; a write into a closed call has gRPC's own
            raise
    finally:
        call.cancel()


async def talk(call: Any, way: str, chance: random.Random) -> None:
    for k in range(chance.randint(1, 6)):
        item = pb.Item(id=f"i{k}", image=png(), parameters=pb.Parameters(n=chance.randint(1, 4)))
        await call.write(pb.SynthesizeRequest(item=item))
        if way == "item":
            await call.write(pb.SynthesizeRequest(cancel_item_id=f"i{chance.randint(0, k)}"))
    await turns(chance)
    if way == "read-one":
        await call.read()
    elif way == "finish":
        await call.done_writing()
        while await call.read() is not aio.EOF:
            pass


async def leave(call: Any, chance: random.Random) -> None:
    await turns(chance)
    call.cancel()
    await asyncio.wait([asyncio.ensure_future(call.code())])


async def turns(chance: random.Random) -> None:
    for _ in range(chance.randint(0, 30)):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_is_admitted_is_released(seed: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    pipeline = FakePipeline()
    async with serve(pipeline) as running:
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_CALLS):
                group.create_task(hurt(running, chance))
                pipeline.gate.set() if chance.random() < 0.5 else pipeline.gate.clear()
                await turns(chance)
            pipeline.gate.set()
        await pipeline.wait_running(0)
        answer = await running.stub.Generate(pb.GenerateRequest(prompt="x"))
        assert len(answer.images) == 1
        await running.app.drain()
        admission = running.app.admission
        assert admission.num_admitted == admission.num_released > 0
        assert pipeline.num_started == pipeline.num_released
