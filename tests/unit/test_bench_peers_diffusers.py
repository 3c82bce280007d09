"""The script with diffusers paints Captory's images: with its noise, its samplers and its guidance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch and diffusers (make test installs them)")
pytest.importorskip("diffusers")

from captory_bench.measuring.workload import Painting, photos
from captory_bench.peers.contenders import Conditions, PeerOutcome, PeerUnavailable, conditions_for
from captory_bench.peers.diffusers import Models, Script
from captory_bench.peers.measure import prompted
from captory_bench.peers.painter import Painter
from captory_bench.peers.script_writer import MAX_ATTEMPTS, ScriptWriter
from captory_bench.peers.wire import Wanted, photo_body, read_body
from captory_engine.images import decode_image
from captory_engine.prompts import accept_rewrite
from captory_engine.repository import default_repository

MAX_DIFFERENCE = 2  # of 255: torch and ONNX Runtime round otherwise


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    if not any(default_repository().glob("*/family.yaml")):
        pytest.skip("there is no embedded family here")
    found = conditions_for(default_repository(), "", 1, 2)
    if found.weights is None or not found.weights.is_dir():
        pytest.skip("there are no checkpoints here")
    return found


@pytest.fixture(scope="module")
def script(conditions: Conditions) -> Script:
    return Script("diffusers", "", Models(conditions), 2)


async def test_mixed_prompts_come_out_as_captory_paints_them(script: Script, conditions: Conditions) -> None:
    jobs = [
        Painting("ddim", "two red mugs on the grass", 3, 1, sampler="ddim"),
        Painting("euler", "two red mugs on the grass", 3, 2, sampler="euler"),
        Painting("default", "a large blue boat at sea", 4, 3),
        Painting("unguided", "a large blue boat at sea", 4, 4, guidance_scale=1.0),
        Painting("strong", "a small green tree in the snow", 2, 5, guidance_scale=5.0),
        Painting("another", "a small green tree in the snow", 2, 6, guidance_scale=5.0),
    ]
    outcome = await script.paint_all(jobs)
    assert outcome.images.keys() == {job.id for job in jobs}
    for job, painted in zip(jobs, Painter(conditions).paint([Wanted(job) for job in jobs]), strict=True):
        expected = np.asarray(decode_image(painted.png), np.int16)
        assert np.abs(expected - outcome.images[job.id]).max() <= MAX_DIFFERENCE, job.id


async def test_photographs_get_captorys_prompts_and_images(script: Script, conditions: Conditions) -> None:
    items = photos(3, 7)
    outcome = await script.paint_photos(items, 2)
    wanted = [read_body(photo_body(photo, 2)) for photo in items]
    for photo, painted in zip(items, Painter(conditions).paint(wanted), strict=True):
        assert outcome.prompts[photo.id] == painted.prompt
        expected = np.asarray(decode_image(painted.png), np.int16)
        assert np.abs(expected - outcome.images[photo.id]).max() <= MAX_DIFFERENCE
    assert outcome.times.wall_s > 0


async def test_captions_are_rewritten_as_a_writer_may_and_painted(script: Script, conditions: Conditions) -> None:
    items = photos(3, 8)
    outcome = await script.paint_rewritten(items, 2)
    assert isinstance(outcome, PeerOutcome)
    assert outcome.batches == {2: 1, 1: 1}
    jobs = prompted(items, outcome.prompts, 2)
    for photo, job, painted in zip(items, jobs, Painter(conditions).paint([Wanted(job) for job in jobs]), strict=True):
        first, _, rewritten = job.prompt.partition(", ")
        assert first == f"a photo of {photo.class_name}"
        assert accept_rewrite(rewritten)
        expected = np.asarray(decode_image(painted.png), np.int16)
        assert np.abs(expected - outcome.images[photo.id]).max() <= MAX_DIFFERENCE


def test_a_refused_rewrite_is_tried_again_and_then_the_caption_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ScriptWriter.__new__(ScriptWriter)
    asked = []

    def generate(captions: list[str]) -> list[str]:
        asked.append(list(captions))
        return ["seven words that are a good caption" if text == "good" else "too short" for text in captions]

    monkeypatch.setattr(writer, "_generate", generate)
    assert writer.rewrite(["bad", "good"]) == ["bad", "seven words that are a good caption"]
    assert asked == [["bad", "good"], *[["bad"]] * (MAX_ATTEMPTS - 1)]


def test_without_checkpoints_the_peer_is_not_there(conditions: Conditions) -> None:
    with pytest.raises(PeerUnavailable, match="no torch weights at /nowhere"):
        Models(replace(conditions, weights=Path("/nowhere")))
