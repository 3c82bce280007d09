"""A real vLLM that is killed in mid-job, stays away, or comes back: what was to be written is written."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from lives import SAMPLE, Fate, fates, items
from ports import free_port
from real_vllm import ARGUMENTS, ENVIRONMENT, NEEDS_VLLM, WRITER, num_answered, vllm_server

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.errors import Unreachable
from captory_engine.items import Item, Mode, Sample
from captory_engine.pipeline import Pipeline
from captory_engine.repository import default_repository
from captory_engine.vllm.options import VllmOptions

ROOT = default_repository()
COMMAND = Path(sys.executable).parent / "captory"

pytestmark = NEEDS_VLLM


@asynccontextmanager
async def writing(place: str, **options: object) -> AsyncIterator[Pipeline]:
    vllm = VllmOptions(**{"patience_s": 300.0, **options})  # type: ignore[arg-type]
    pipeline = await open_pipeline(EngineConfig(ROOT, num_threads=1, writer=place, vllm=vllm))
    try:
        yield pipeline
    finally:
        await pipeline.close()


def rewrites(pipeline: Pipeline, num: int, *, first_seed: int) -> list[Item]:
    """Seeds that no other has, since words that are known are not asked for again."""
    seeds = range(first_seed, first_seed + num)
    made = zip(items(pipeline, num, steps=4), seeds, strict=True)
    return [replace(item, mode=Mode.REWRITE, samples=(Sample(0, 0, seed),)) for item, seed in made]


def reasons(found: dict[str, Fate]) -> set[str]:
    return {fate.reason for fate in found.values()}


def test_the_job_finishes_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(vllm_server(port))
        told = {"WRITER": f"vllm://{first.address}", "VLLM__MAX_CONCURRENT": "1", "VLLM__PATIENCE_S": "300"}
        job = stack.enter_context(running_job(tmp_path / "out", {f"CAPTORY_{name}": one for name, one in told.items()}))
        while num_answered(first.address) < 20:
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"the job ended first, with {job.wait(0.02)}")
        first.kill()
        stack.enter_context(vllm_server(port))
        stdout, stderr = job.communicate()
    assert job.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["images"] == summary["items"] > 20


@contextmanager
def running_job(out: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [COMMAND, "run", SAMPLE, "--out", out, "--mode", "rewrite", "--steps", "2", "--json", "--quiet"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)
    try:
        yield job
    finally:
        job.kill()
        job.communicate()


async def test_away_for_longer_than_patience_fails_images_and_only_those() -> None:
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(vllm_server(port))
        async with writing(f"vllm://{first.address}", patience_s=2.0) as pipeline:
            first.kill()
            lost = await fates(pipeline, rewrites(pipeline, 8, first_seed=1000))
            plain = await fates(pipeline, items(pipeline, 8))
            await asyncio.to_thread(stack.enter_context, vllm_server(port))
            found = await fates(pipeline, rewrites(pipeline, 8, first_seed=1000))
    assert reasons(lost) == {"VLLM_DOWN"}
    assert reasons(plain) == reasons(found) == {""}


async def test_down_at_start() -> None:
    with pytest.raises(Unreachable, match=r"No vLLM at 127\.0\.0\.1:\d+ answers"):
        async with writing(f"vllm://127.0.0.1:{free_port()}", patience_s=0.5):
            pass


async def test_one_of_our_own_that_is_killed_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with writing(f"vllm:{WRITER}", arguments=ARGUMENTS) as pipeline:
        [server] = pipeline._remotes
        process = server.process  # type: ignore[attr-defined]
        first = process.pid
        os.killpg(first, signal.SIGKILL)
        found = await fates(pipeline, rewrites(pipeline, 8, first_seed=1000))
        assert process.pid != first
    assert reasons(found) == {""}
