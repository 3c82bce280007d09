"""A vision-language model on a real vLLM on the CPU: small, with random weights, and it captions what it is shown.

Its words mean nothing. That they are those that transformers finds for the same picture says that the picture arrived.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from lives import items
from main_job import SAMPLE, run
from PIL import Image
from real_vllm import NEEDS_VLLM, WRITER, vllm_server
from vlm_twin import NUM_AROUND, NUM_IMAGE_TOKENS, Reference, save

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.items import Captioned, Event, Item, Mode, Painted, Stage
from captory_engine.pipeline import Pipeline
from captory_engine.prompts import clean_model_text
from captory_engine.repository import default_repository
from captory_engine.vllm.captioner import MAX_SIDE_PX, TELLINGS

ROOT = default_repository()
LENGTHS = {"short": Mode.RECAP_SHORT, "long": Mode.RECAP_LONG}

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("vlm"), WRITER)


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with vllm_server(model=model, arguments=("--dtype=float32",)) as server:  # as the reference computes
        yield server.address


@asynccontextmanager
async def captioning(address: str, *, writer: str = "") -> AsyncIterator[Pipeline]:
    config = EngineConfig(ROOT, num_threads=1, captioner=f"vllm://{address}", writer=writer)
    pipeline = await open_pipeline(config)
    try:
        yield pipeline
    finally:
        await pipeline.close()


async def events_of(pipeline: Pipeline, wanted: list[Item]) -> list[list[Event]]:
    async def live(item: Item) -> list[Event]:
        return [event async for event in pipeline.run(item)]

    return await asyncio.gather(*map(live, wanted))


def last_painted(events: list[Event]) -> Painted:
    [painted] = [event for event in events if isinstance(event, Painted)]
    return painted


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def shown(image: bytes) -> Image.Image:
    """What the captioner shows of it."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    return picture


@pytest.mark.parametrize("length", LENGTHS)
async def test_it_says_what_transformers_finds_for_each_picture(address: str, model: Path, length: str) -> None:
    large = png(Image.linear_gradient("L").resize((1500, 700)).convert("RGB"))
    async with captioning(address) as pipeline:
        wanted = [replace(item, mode=LENGTHS[length]) for item in items(pipeline, 8)]
        wanted.append(replace(wanted[0], id="large", image=large))
        wanted = [replace(item, parameters=replace(item.parameters, stop_after=Stage.CAPTION)) for item in wanted]
        events = await events_of(pipeline, wanted)
    captions = [event for made in events for event in made if isinstance(event, Captioned)]
    reference = Reference(model)
    found = [clean_model_text(reference.answer(shown(item.image), *TELLINGS[length])) for item in wanted if item.image]
    assert len(captions) == len(found) == len(wanted)
    assert {caption.length for caption in captions} == {length}
    same = [caption.text == words for caption, words in zip(captions, found, strict=True)]
    assert sum(same) >= len(same) - 1  # who rides along may change the last bits
    assert len({caption.text for caption in captions}) >= len(wanted) - 1


@pytest.mark.parametrize("mode", [Mode.CIP, Mode.CAPTION_ONLY])
async def test_its_caption_is_painted_and_the_record_names_it(address: str, mode: Mode) -> None:
    async with captioning(address) as pipeline:
        models = pipeline.info.models
        events = await events_of(pipeline, [replace(item, mode=mode) for item in items(pipeline, 4)])
    for made in events:
        [caption] = [event for event in made if isinstance(event, Captioned)]
        record = last_painted(made).provenance
        assert (record.caption, record.prompt.endswith(caption.text)) == (caption.text, True)
        assert record.models["vllm_captioner"] == models["vllm_captioner"].sha256
    assert models["vllm_captioner"].backend == "vllm 0.32.0"
    assert [name for name in models if "caption" in name] == ["vllm_captioner"]


async def test_a_picture_takes_its_tokens(address: str) -> None:
    async def num_tokens(*pictures: Image.Image) -> int:
        urls = ["data:image/png;base64," + base64.b64encode(png(picture)).decode() for picture in pictures]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": "a"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        answer = await client.post(f"http://{address}/v1/chat/completions", json=body)
        return int(answer.json()["usage"]["prompt_tokens"])

    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        without, one = await num_tokens(), await num_tokens(Image.new("RGB", (64, 48)))
    assert one - without == NUM_IMAGE_TOKENS + NUM_AROUND


async def test_one_model_captions_and_rewords(address: str) -> None:
    async with captioning(address, writer=f"vllm://{address}") as pipeline:
        events = await events_of(pipeline, [replace(item, mode=Mode.REWRITE) for item in items(pipeline, 8)])
    made = [last_painted(one).provenance for one in events]
    assert all({"vllm_captioner", "vllm_writer"} <= record.models.keys() for record in made)
    assert sum(record.writer == "model" for record in made) >= 4
    assert {record.writer for record in made} <= {"model", "fallback"}


def test_a_folder_becomes_a_dataset(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTORY_CAPTIONER", f"vllm://{address}")
    done = run(SAMPLE, tmp_path / "out", "--mode", "cip")
    assert done.code == 0, done.stderr
    assert done.summary["images"] == done.summary["items"] > 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["images"] == done.summary["images"]
    assert len(manifest["models"]["vllm_captioner"]) == 64
