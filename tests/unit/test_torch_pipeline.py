"""One photograph through the whole pipeline on the torch backend, beside the same on ONNX Runtime."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.items import Captioned, Event, Item, Mode, Painted, Sample
from captory_engine.repository import default_repository

torch = pytest.importorskip("torch", reason="the torch backend needs torch and diffusers (make test installs them)")
pytest.importorskip("diffusers")

SAMPLE = Path(__file__).parents[2] / "clients" / "captory_client" / "sample"
MAX_MEAN_DIFFERENCE = 1.0  # grey levels of 255
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the backend would choose the GPU: see tests/gpu")


async def painted(backend: str) -> list[Event]:
    pipeline = await open_pipeline(EngineConfig(default_repository(), "picto", backend=backend, num_threads=1))
    try:
        parameters = replace(pipeline.info.defaults, steps=4)
        image = sorted(SAMPLE.glob("*/*.png"))[7].read_bytes()
        samples = (Sample(0, 0, 12345), Sample(0, 1, 67890))
        item = Item("photo", parameters, samples, mode=Mode.CIP, class_name="bass", image=image)
        return [event async for event in pipeline.run(item)]
    finally:
        await pipeline.close()


def pixels(event: Painted) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(event.data)), np.int16)


async def test_a_photograph_becomes_the_same_image() -> None:
    found, expected = await painted("torch"), await painted("onnx")
    assert [e for e in found if isinstance(e, Captioned)] == [e for e in expected if isinstance(e, Captioned)]
    images, references = ({e.provenance.sample: e for e in run if isinstance(e, Painted)} for run in (found, expected))
    assert len(images) == 2
    for sample, image in images.items():
        assert image.provenance.backend.startswith("torch ")
        assert image.provenance.prompt == references[sample].provenance.prompt
        assert np.abs(pixels(image) - pixels(references[sample])).mean() <= MAX_MEAN_DIFFERENCE
