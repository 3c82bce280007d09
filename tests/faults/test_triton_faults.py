"""A Triton that is down, killed, restarted, without its model, of another shape, too slow: nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from lives import fates, items
from ports import free_port
from real_triton import NEEDS_TRITON
from tritonclient.grpc import InferenceServerClient

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.errors import BadModel, Unreachable
from captory_engine.family import find_family
from captory_engine.manifest import write_manifest
from captory_engine.pipeline import Pipeline
from captory_engine.repository import default_repository
from captory_engine.sessions.options import TritonOptions
from captory_export.triton.host import triton_server

ROOT = default_repository()
UNET = find_family(ROOT).family.painter.denoiser

pytestmark = NEEDS_TRITON


@asynccontextmanager
async def behind(address: str, *, patience_s: float = 120.0, timeout_s: float = 60.0) -> AsyncIterator[Pipeline]:
    options = TritonOptions(address, patience_s=patience_s, timeout_s=timeout_s)
    pipeline = await open_pipeline(EngineConfig(ROOT, backend="triton", num_threads=1, triton=options))
    try:
        yield pipeline
    finally:
        await pipeline.close()


@pytest.fixture(scope="module")
def on_demand() -> Iterator[str]:
    """The address of a Triton that loads and unloads models when it is told to."""
    with triton_server([ROOT], num_threads=1, loads_on_demand=True) as server:
        yield server.address


def once(action: Callable[[], object]) -> Callable[[], None]:
    """What does it at its first call only."""
    todo = [action]

    def call() -> None:
        while todo:
            todo.pop()()

    return call


async def test_down_at_start() -> None:
    with pytest.raises(Unreachable, match=r"no Triton at 127\.0\.0\.1:\d+ answers"):
        async with behind(f"127.0.0.1:{free_port()}", patience_s=0.5):
            pass


async def test_killed_in_mid_job_and_back() -> None:
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(triton_server([ROOT], num_threads=1, port=port))

        def replace() -> None:
            os.kill(first.pid, signal.SIGKILL)
            first.process.wait()
            stack.enter_context(triton_server([ROOT], num_threads=1, port=port))

        async with behind(first.address) as pipeline:
            before = await fates(pipeline, items(pipeline, 4, steps=8))
            found = await fates(pipeline, items(pipeline, 36, steps=8), once(replace))
    assert len(found) == 36
    assert {fate.reason for fate in found.values()} == {""}
    for key, fate in before.items():
        np.testing.assert_allclose(found[key].pixels, fate.pixels, atol=1)


async def test_down_for_longer_than_patience_fails_items_and_only_those() -> None:
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(triton_server([ROOT], num_threads=1, port=port))
        async with behind(first.address, patience_s=3.0) as pipeline:  # above the longest pause between connections
            os.kill(first.pid, signal.SIGKILL)
            first.process.wait()
            lost = await fates(pipeline, items(pipeline, 12))
            assert not pipeline.device.answers
            stack.enter_context(triton_server([ROOT], num_threads=1, port=port))
            found = await fates(pipeline, items(pipeline, 12))
            assert pipeline.device.answers
    assert [fate.reason for fate in lost.values()] == ["TRITON_DOWN"] * 12
    assert [fate.reason for fate in found.values()] == [""] * 12


async def test_a_model_that_is_unloaded_and_loaded_again(on_demand: str) -> None:
    admin = InferenceServerClient(on_demand)

    def reload() -> None:
        admin.unload_model(UNET)
        admin.load_model(UNET)

    async with behind(on_demand) as pipeline:
        found = await fates(pipeline, items(pipeline, 24, steps=8), once(reload))
    assert [fate.reason for fate in found.values()] == [""] * 24


async def test_a_model_that_is_not_there(on_demand: str) -> None:
    admin = InferenceServerClient(on_demand)
    admin.unload_model(UNET)
    try:
        with pytest.raises(BadModel, match=f"'{UNET}'.*it is not loaded there, or not ready"):
            async with behind(on_demand):
                pass
    finally:
        admin.load_model(UNET)


async def test_another_shape_is_named(on_demand: str, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    shutil.copytree(ROOT, root)
    config = root / UNET / "config.pbtxt"
    text = config.read_text()
    config.write_text(text.replace("dims: 128", "dims: 256").replace("max_batch_size: 64", "max_batch_size: 96"))
    assert config.read_text() != text
    write_manifest(root / UNET)
    with pytest.raises(BadModel) as refused:
        await open_pipeline(EngineConfig(root, backend="triton", triton=TritonOptions(on_demand)))
    assert "input 'encoder_hidden_states' is FP32 [-1, 64, 128], in the folder FP32 [-1, 64, 256]" in str(refused.value)
    assert "it takes batches of 64, in the folder of 96" in str(refused.value)


async def test_too_slow_fails_with_the_reason(on_demand: str) -> None:
    async with behind(on_demand) as pipeline:
        sessions = {session.name: session for session in pipeline._sessions}
        sessions[UNET]._timeout_s = 1e-4
        found = await fates(pipeline, items(pipeline, 6))
        sessions[UNET]._timeout_s = 60.0
        after = await fates(pipeline, items(pipeline, 6))
    assert [fate.reason for fate in found.values()] == ["TRITON_SLOW"] * 6
    assert [fate.reason for fate in after.values()] == [""] * 6


async def test_a_triton_that_hangs_holds_up_no_shutdown() -> None:
    with triton_server([ROOT], num_threads=1) as server:
        async with behind(server.address) as pipeline:
            os.kill(server.pid, signal.SIGSTOP)
            try:
                hung = asyncio.create_task(fates(pipeline, items(pipeline, 4)))
                while pipeline.device.num_tasks < 4:
                    await asyncio.sleep(0)
                async with asyncio.timeout(30):  # an answer may take twice that
                    await pipeline.close()
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert not [fate for fate in (await hung).values() if not fate.reason]
