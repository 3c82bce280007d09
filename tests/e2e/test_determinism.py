"""F18 of reliability: an item in any company, at any place of any batch, after a restart, on the real picto."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captory_engine import assembly
from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.items import Determinism, Item, Mode, Painted, Sample
from captory_engine.pipeline import Pipeline
from captory_engine.repository import default_repository

BATCHES = (1, 2, 3, 5, 8, 16, 40)
SAMPLE = Path(__file__).parents[2] / "clients" / "captory_client" / "sample"
WORDS = ("a red crane bird on grass", "two blue mugs", "a green house on sand", "a large white bat animal at night")


@pytest.fixture
async def pipeline(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pipeline]:
    """Without caches: every graph must run again, in the company that is there."""
    monkeypatch.setattr(assembly, "CACHED_CAPTIONS", 0)
    monkeypatch.setattr(assembly, "CACHED_TEXTS", 0)
    pipeline = await open_pipeline(EngineConfig(default_repository(), "picto"))
    yield pipeline
    await pipeline.close()


def probe(pipeline: Pipeline, determinism: Determinism, mode: Mode = Mode.CIP) -> Item:
    """The item that is watched: a photograph of the sample through captioner, prompt and painter."""
    parameters = replace(pipeline.info.defaults, steps=3, determinism=determinism)
    image = sorted(SAMPLE.glob("*/*.png"))[7].read_bytes()
    return Item("probe", parameters, (Sample(0, 0, 12345),), mode=mode, class_name="bass", image=image)


def neighbour(pipeline: Pipeline, determinism: Determinism, rng: random.Random) -> Item:
    """An item that differs in all that may differ."""
    parameters = replace(
        pipeline.info.defaults,
        steps=rng.choice([1, 2, 3, 5]),
        guidance_scale=rng.choice([1.0, 2.0, 6.0]),
        sampler=rng.choice(pipeline.info.samplers),
        determinism=determinism,
    )
    samples = (Sample(0, 0, rng.getrandbits(53)),)
    if rng.random() < 0.5:
        return Item(f"n{rng.random()}", parameters, samples, prompt=rng.choice(WORDS))
    pixels = np.frombuffer(rng.randbytes(64 * 64 * 3), np.uint8).reshape(64, 64, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Item(f"n{rng.random()}", parameters, samples, mode=rng.choice(list(Mode)), image=buffer.getvalue())


async def painted(pipeline: Pipeline, item: Item) -> Painted:
    [image] = [event async for event in pipeline.run(item) if isinstance(event, Painted)]
    return image


async def in_company(pipeline: Pipeline, item: Item, batch: int, place: int, rng: random.Random) -> Painted:
    others = [neighbour(pipeline, item.parameters.determinism, rng) for _ in range(batch - 1)]
    company = [*others[:place], item, *others[place:]]
    tasks = [asyncio.ensure_future(_drop_failures(pipeline, one)) for one in company]
    found = (await asyncio.gather(*tasks))[place]
    assert found is not None
    return found


async def _drop_failures(pipeline: Pipeline, item: Item) -> Painted | None:
    images = [event async for event in pipeline.run(item) if isinstance(event, Painted)]
    return images[0] if images else None


@pytest.mark.parametrize("mode", [Mode.CIP, Mode.REWRITE, Mode.CLOSED_LOOP])
async def test_exact_is_byte_identical_in_any_company(pipeline: Pipeline, mode: Mode) -> None:
    rng = random.Random(18)
    item = probe(pipeline, Determinism.EXACT, mode)
    alone = await painted(pipeline, item)
    for batch in BATCHES:
        for place in sorted({0, batch // 2, batch - 1}):
            found = await in_company(pipeline, item, batch, place, rng)
            assert found == alone, f"batch {batch}, place {place}"


async def test_exact_is_byte_identical_after_a_restart(pipeline: Pipeline) -> None:
    item = probe(pipeline, Determinism.EXACT)
    first = await painted(pipeline, item)
    other = await open_pipeline(EngineConfig(default_repository(), "picto"))
    try:
        assert await painted(other, item) == first
    finally:
        await other.close()


@pytest.mark.parametrize("mode", [Mode.CIP, Mode.CLOSED_LOOP])
async def test_stable_keeps_words_and_noise_and_drifts_little(pipeline: Pipeline, mode: Mode) -> None:
    rng = random.Random(19)
    item = probe(pipeline, Determinism.STABLE, mode)
    alone = await painted(pipeline, item)
    pixels = np.asarray(Image.open(io.BytesIO(alone.data)), np.int16)
    for batch in (2, 7, 33):
        found = await in_company(pipeline, item, batch, batch // 2, rng)
        assert found.provenance.prompt == alone.provenance.prompt
        drift = np.abs(np.asarray(Image.open(io.BytesIO(found.data)), np.int16) - pixels)
        assert drift.max() <= 2, "more than rounding"
