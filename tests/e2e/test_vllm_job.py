"""The whole job with picto's writer on a real vLLM on the CPU, reached and run by Captory itself.

`make test-vllm` runs this; without its environment it is skipped. A model with eyes is in test_vllm_vision.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from lives import items
from main_job import SAMPLE, run
from real_vllm import ARGUMENTS, ENVIRONMENT, NEEDS_VLLM, WRITER, num_answered, num_running, num_steps, vllm_server

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.errors import BadModel, Expired
from captory_engine.family import find_family
from captory_engine.items import Event, Item, Mode, Painted, Parameters, Prompted, Sample, Stage, WorkClass
from captory_engine.manifest import verify_manifest
from captory_engine.modes import read_modes
from captory_engine.pipeline import Pipeline
from captory_engine.repository import default_repository
from captory_engine.stages import Share
from captory_engine.tokenizer import Tokenizer
from captory_engine.vllm.options import VllmOptions
from captory_engine.vllm.server import open_server
from captory_engine.vllm.writer import PlainWriter, open_writer

ROOT = default_repository()
INSTRUCTION = read_modes().plans[Mode.REWRITE].instruction
CAPTION = "two large red boats on the sea in the centre of the picture, lit from the left"

SHARE = Share(WorkClass.BULK, exact=False)

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with vllm_server() as server:
        yield server.address


@asynccontextmanager
async def writing(address: str, **options: int) -> AsyncIterator[PlainWriter]:
    """Picto's writer there, asked as the pipeline does."""
    located = find_family(ROOT)
    spec = located.family.writer
    assert spec is not None
    server = await open_server(f"vllm://{address}", VllmOptions(**options))
    try:
        writer = await open_writer(server, spec, Tokenizer(located.root / spec.tokenizer))
        assert isinstance(writer, PlainWriter)  # it has no chat template, and the family's tokens
        yield writer
    finally:
        await server.close()


async def attempts(writer: PlainWriter, seeds: range) -> list[str]:
    assert INSTRUCTION is not None
    given = {"c": "boat", "caption": CAPTION, "attributes": ""}
    return await asyncio.gather(*(writer.attempt(INSTRUCTION, given, seed, SHARE) for seed in seeds))


async def test_its_words_are_captions_and_follow_the_seed(address: str) -> None:
    async with writing(address) as writer:
        once, again = await attempts(writer, range(16)), await attempts(writer, range(16))
    assert sum(a == b for a, b in zip(once, again, strict=True)) >= 12  # who rides along may change the last bits
    assert len(set(once)) > 8
    assert all("boat" in text and "<|" not in text for text in once)


async def test_many_at_once_are_batched(address: str) -> None:
    async def steps(**options: int) -> float:
        async with writing(address, **options) as writer:
            before = num_steps(address)
            await attempts(writer, range(1000, 1064))
            return num_steps(address) - before

    together, one_by_one = await steps(max_concurrent=64), await steps(max_concurrent=1)
    assert 0 < together < one_by_one / 4


async def paint(pipeline: Pipeline, wanted: list[Item]) -> list[Painted]:
    async def live(item: Item) -> list[Painted]:
        return [event async for event in pipeline.run(item) if isinstance(event, Painted)]

    return [painted for made in await asyncio.gather(*map(live, wanted)) for painted in made]


@pytest.mark.parametrize("mode", [Mode.REWRITE, Mode.FACE])
async def test_the_modes_that_need_a_writer(address: str, mode: Mode) -> None:
    pipeline = await open_pipeline(EngineConfig(ROOT, num_threads=1, writer=f"vllm://{address}"))
    try:
        wanted = [replace(item, mode=mode) for item in items(pipeline, 24)]
        made = [painted.provenance for painted in await paint(pipeline, wanted)]
    finally:
        await pipeline.close()
    assert len(made) == 24
    assert all(one.models["vllm_writer"] == pipeline.info.models["vllm_writer"].sha256 for one in made)
    assert sum(one.writer == "model" for one in made) >= 12
    assert {one.writer for one in made} <= {"model", "fallback"}


async def test_it_has_no_eyes_and_is_refused_as_captioner(address: str) -> None:
    with pytest.raises(BadModel) as refused:
        await open_pipeline(EngineConfig(ROOT, num_threads=1, captioner=f"vllm://{address}"))
    assert refused.value.reason == "VLLM_NO_VISION"


async def test_a_deadline_ends_the_work_there(address: str) -> None:
    pipeline = await open_pipeline(EngineConfig(ROOT, num_threads=1, writer=f"vllm://{address}"))
    parameters: Parameters = replace(pipeline.info.defaults, stop_after=Stage.PROMPT, deadline_s=0.3)
    many = tuple(Sample(index, 0, 5000 + index) for index in range(1024))  # seconds of work
    late = Item("late", parameters, many, mode=Mode.REWRITE, caption=CAPTION)
    in_time = Item("in-time", replace(parameters, deadline_s=None), many[:4], mode=Mode.REWRITE, caption=CAPTION)
    before = num_answered(address)
    try:
        with pytest.raises(Expired):
            await listed(pipeline.run(late))
        prompted = [event for event in await listed(pipeline.run(in_time)) if isinstance(event, Prompted)]
    finally:
        await pipeline.close()
    assert len(prompted) == 4
    assert "model" in {event.writer for event in prompted}
    assert num_answered(address) - before < len(many) / 2
    while num_running(address):  # each look takes a few milliseconds; the test's own limit ends it
        pass


async def listed(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def test_a_folder_becomes_a_dataset(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTORY_WRITER", f"vllm://{address}")
    done = run(SAMPLE, tmp_path / "out", "--mode", "rewrite")
    assert done.code == 0, done.stderr
    assert done.summary["images"] == done.summary["items"] > 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["images"] == done.summary["images"]
    assert len(manifest["models"]["vllm_writer"]) == 64


async def test_one_of_our_own_is_started_and_known_by_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    options = VllmOptions(arguments=ARGUMENTS)
    pipeline = await open_pipeline(EngineConfig(ROOT, num_threads=1, writer=f"vllm:{WRITER}", vllm=options))
    try:
        made = await paint(pipeline, [replace(item, mode=Mode.REWRITE) for item in items(pipeline, 4)])
    finally:
        await pipeline.close()
    assert {painted.provenance.writer for painted in made} <= {"model", "fallback"}
    assert {painted.provenance.models["vllm_writer"] for painted in made} == {verify_manifest(WRITER)}
    assert pipeline.info.models["vllm_writer"].backend == "vllm 0.32.0"
