"""Every prompt mode on the embedded family: what its records say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.items import Item, Mode, Painted, Provenance, Sample
from captory_engine.modes import WriterKind
from captory_engine.pipeline import Pipeline
from captory_engine.prompts import accept_rewrite
from captory_engine.repository import default_repository

SAMPLE = Path(__file__).parents[2] / "clients" / "captory_client" / "sample"
ATTRIBUTES = ("young", "black hair", "a hat")
NUM_IMAGES = 6


@pytest.fixture
async def pipeline() -> AsyncIterator[Pipeline]:
    pipeline = await open_pipeline(EngineConfig(default_repository(), "picto"))
    yield pipeline
    await pipeline.close()


def item(pipeline: Pipeline, mode: Mode, name: str = "crane", **changes: Any) -> Item:
    """One photograph of the sample."""
    image = min((SAMPLE / name).glob("*.png")).read_bytes()
    samples = tuple(Sample(k, 0, 7000 + k) for k in range(NUM_IMAGES))
    parameters = replace(pipeline.info.defaults, steps=4)
    return Item(f"{name}-{mode}", parameters, samples, mode=mode, class_name=name, image=image, **changes)


async def made(pipeline: Pipeline, wanted: Item) -> list[Provenance]:
    """The records of its images, in order of seed."""
    painted = [event.provenance async for event in pipeline.run(wanted) if isinstance(event, Painted)]
    return sorted(painted, key=lambda one: one.sample.seed)


async def test_every_mode_makes_every_image_and_says_how(pipeline: Pipeline) -> None:
    assert pipeline.info.modes == tuple(Mode)
    found = await asyncio.gather(*(made(pipeline, item(pipeline, mode)) for mode in Mode))
    for mode, records in zip(Mode, found, strict=True):
        plan = pipeline.modes.plans[mode]
        assert len(records) == NUM_IMAGES, mode
        assert {one.mode_sha256 for one in records} == {pipeline.info.mode_sha256[mode]}
        assert {bool(one.caption) for one in records} == {bool(plan.captions)}
        assert {len(one.synthetic_captions) for one in records} == {plan.rounds - 1}
        writers = {one.writer for one in records}
        assert writers <= ({"model", "fallback"} if plan.writer is WriterKind.MODEL else {"template"})


async def test_rewrites_are_the_model_s_own_and_differ(pipeline: Pipeline) -> None:
    records = await made(pipeline, item(pipeline, Mode.REWRITE))
    written = [one for one in records if one.writer == "model"]
    assert len({one.prompt for one in written}) > 1
    for one in written:
        assert one.prompt.startswith("a photo of crane, ")
        assert accept_rewrite(one.prompt.removeprefix("a photo of crane, "))


async def test_a_face_is_told_from_its_attributes(pipeline: Pipeline) -> None:
    records = await made(pipeline, item(pipeline, Mode.FACE, "face", attributes=ATTRIBUTES))
    assert {(one.caption, one.attributes) for one in records} == {("", ATTRIBUTES)}
    told = [one.prompt for one in records if one.writer == "model"]
    assert told
    assert sum("black hair" in prompt for prompt in told) > len(told) / 2


async def test_a_closed_loop_ends_in_the_caption_of_its_draft_whatever_is_beside_it(pipeline: Pipeline) -> None:
    wanted = item(pipeline, Mode.CLOSED_LOOP)
    together, *_ = await asyncio.gather(
        *(made(pipeline, one) for one in (wanted, item(pipeline, Mode.CIP, "mug"), item(pipeline, Mode.BASIC, "bat")))
    )
    alone = await made(pipeline, replace(wanted, samples=wanted.samples[:1]))
    for one in together:
        [said] = one.synthetic_captions
        assert one.prompt == f"a photo of crane, {said}"
    assert (alone[0].prompt, alone[0].synthetic_captions) == (together[0].prompt, together[0].synthetic_captions)
