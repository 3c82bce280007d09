"""Twins of every captioner and painter, exported together and served: words and images are the checkpoints' own.

What a checkpoint says is told by transformers, what it paints by diffusers' pipeline from the same noise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import painter_twins
import word_twins
from lives import Fate, fates
from painter_twins import SIZE_PX
from real_triton import NEEDS_TRITON

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.family import find_family
from captory_engine.items import Item, Parameters, Sample
from captory_engine.repository import open_model
from captory_engine.sessions.options import TritonOptions
from captory_export.families import Wanted, export_family
from captory_export.triton.host import triton_server

pytestmark = pytest.mark.export

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
PROMPT, NEGATIVE_PROMPTS = "a photo of a red mug on a table", ("", "blue dog")
SEED, NUM_STEPS, GUIDANCE_SCALE = 7, 3, 7.5
TOLERANCE = 1  # grey levels of 255


class Twins(NamedTuple):
    """A captioner's name in `word_twins`, what writes the painter, and the sampler that its pipeline has."""

    captioner: str
    painter: Callable[[Path], Path]
    sampler: str = "euler"


class Exported(NamedTuple):
    twins: Twins
    captioner: Path
    painter: Path
    repository: Path


FAMILIES = {
    "blip-sd": Twins("blip", painter_twins.stable_diffusion),
    "blip-sd-v": Twins("blip", partial(painter_twins.stable_diffusion, prediction_type="v_prediction")),
    "blip-2-sdxl": Twins("blip-2", painter_twins.stable_diffusion_xl),
    "vit-gpt2-sd3": Twins("vit-gpt2", painter_twins.stable_diffusion_3, "flow-euler"),
}
every_painter = pytest.mark.parametrize("exported", FAMILIES, indirect=True)
every_captioner = pytest.mark.parametrize("exported", ["blip-sd", "blip-2-sdxl", "vit-gpt2-sd3"], indirect=True)


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One of `FAMILIES`."""
    twins, root = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    captioner, painter = word_twins.save(twins.captioner, root / "captioner"), twins.painter(root / "painter")
    export_family(Wanted(str(captioner), "", str(painter), name=request.param), root / "models", lambda _: None)
    return Exported(twins, captioner, painter, root / "models")


@contextmanager
def hosted(host: str, repository: Path) -> Iterator[dict[str, Any]]:
    """What the engine is to be told so that a repository's graphs run there."""
    if host == "embedded":
        yield {}
        return
    with triton_server([repository], num_threads=1) as server:
        yield {"backend": "triton", "triton": TritonOptions(server.address)}


async def lived(repository: Path, items: Sequence[Item], **config: Any) -> list[Fate]:
    """What becomes of items that ride together: an image each."""
    pipeline = await open_pipeline(EngineConfig(repository, num_threads=1, **config))
    try:
        found = await fates(pipeline, items)
    finally:
        await pipeline.close()
    assert [fate.reason for fate in found.values()] == [""] * len(items)
    return [found[item.id] for item in items]


def asked(twins: Twins, name: str, negative_prompt: str = "", **content: Any) -> Item:
    parameters = Parameters(NUM_STEPS, GUIDANCE_SCALE, twins.sampler, SIZE_PX, SIZE_PX, negative_prompt=negative_prompt)
    return Item(name, parameters, (Sample(0, 0, SEED),), **content)


def painted_by_diffusers(painter: Path, prompt: str, negative_prompt: str = "") -> np.ndarray:
    """[H, W, 3] in grey levels."""
    image = painter_twins.pipeline_image(
        painter, prompt, negative_prompt, seed=SEED, num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE
    )
    return np.rint((image + 1) * 127.5).transpose(1, 2, 0)


def as_png(photo: Image.Image) -> bytes:
    file = io.BytesIO()
    photo.save(file, "PNG")
    return file.getvalue()


@every_painter
async def test_the_engine_paints_what_diffusers_paints(exported: Exported) -> None:
    items = [asked(exported.twins, f"away-from-{text[:4]}", text, prompt=PROMPT) for text in NEGATIVE_PROMPTS]
    found = [fate.pixels for fate in await lived(exported.repository, items)]
    wanted = [painted_by_diffusers(exported.painter, PROMPT, text) for text in NEGATIVE_PROMPTS]
    assert np.abs(wanted[0] - wanted[1]).max() > 5 * TOLERANCE, "another negative prompt would not be seen"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("host", ["embedded", pytest.param("triton", marks=NEEDS_TRITON)])
@every_captioner
async def test_a_photo_becomes_the_words_and_the_image_of_the_checkpoints(exported: Exported, host: str) -> None:
    twins, repository = exported.twins, exported.repository
    captioner = find_family(repository).family.captioner
    caption = word_twins.caption(twins.captioner, exported.captioner, PHOTO, captioner.max_new_tokens)
    with hosted(host, repository) as config:
        [fate] = await lived(repository, [asked(twins, "photo", class_name="dog", image=as_png(PHOTO))], **config)
    assert fate.prompt == f"a photo of dog, {caption}"
    np.testing.assert_allclose(fate.pixels, painted_by_diffusers(exported.painter, fate.prompt), rtol=0, atol=TOLERANCE)


@every_painter
def test_graphs_take_what_the_family_file_says(exported: Exported) -> None:
    family, root = find_family(exported.repository).family, exported.repository
    denoiser, texts = open_model(root, family.painter.denoiser), open_model(root, family.painter.text_encoder)
    assert family.writer is None
    assert {spec.name: tuple(spec.shape) for spec in denoiser.inputs}["timestep"] == ()
    assert {*family.painter.conditions} <= {spec.name for spec in denoiser.inputs}
    assert {spec.name for spec in texts.inputs} == {"input_ids", *(text.input for text in family.painter.further_text)}
    assert set(family.painter.conditions.values()) == {spec.name for spec in texts.outputs}
