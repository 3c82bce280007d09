"""BLIP-base and Stable Diffusion 1.5 at full size with random weights: exported, and one image through both hosts.

Takes about 20 minutes, 16 GB of memory and as much disk: `make test-full-size` asks for it.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")

import painter_twins  # noqa: E402
import word_twins  # noqa: E402
from real_triton import NEEDS_TRITON  # noqa: E402

from captory_engine.assembly import EngineConfig, open_pipeline  # noqa: E402
from captory_engine.items import Item, Painted, Sample  # noqa: E402
from captory_engine.sessions.options import TritonOptions  # noqa: E402
from captory_export.families import Wanted, export_family  # noqa: E402
from captory_export.triton.host import triton_server  # noqa: E402

SIZE_PX = 256
ASKED = "CAPTORY_FULL_SIZE"
TOLERANCE = 2  # grey levels of 255
OF_TRITON, HAS_TRITON = NEEDS_TRITON

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(ASKED not in os.environ, reason=f"takes long: `make test-full-size` sets {ASKED}"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full-size")
    torch.manual_seed(0)
    blip = transformers.BlipForConditionalGeneration(blip_base())
    num_words = blip.config.text_config.vocab_size
    word_twins.write("blip", blip, root / "captioner", size_px=384, num_words=num_words)
    painter_twins.stable_diffusion_15(root / "painter", SIZE_PX)
    wanted = Wanted(str(root / "captioner"), "", str(root / "painter"), name="full")
    export_family(wanted, root / "models", print)
    return root / "models"


def blip_base() -> Any:
    """What transformers has as defaults is BLIP-base; but its weights would be 1e-10, and tell no difference."""
    return transformers.BlipConfig(
        text_config={"bos_token_id": word_twins.BOS_ID, "sep_token_id": word_twins.EOS_ID, "pad_token_id": 0},
        vision_config={"initializer_range": 0.02},
    )


async def paint(repository: Path, **config: Any) -> np.ndarray:
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(photo, "PNG")
    pipeline = await open_pipeline(EngineConfig(repository, **config))
    try:
        parameters = replace(pipeline.info.defaults, steps=2)
        item = Item("one", parameters, (Sample(0, 0, 7),), class_name="dog", image=photo.getvalue())
        events = [event async for event in pipeline.run(item)]
    finally:
        await pipeline.close()
    [image] = [event for event in events if isinstance(event, Painted)]
    with Image.open(io.BytesIO(image.data)) as opened:
        assert opened.size == (SIZE_PX, SIZE_PX)
        return np.asarray(opened.convert("RGB")).astype(int)


def test_parity_is_that_of_single_precision(repository: Path) -> None:
    report = json.loads((repository / "full_painter_unet" / "report.json").read_text())
    assert report["captioner"]["end_to_end"]["same_texts"] == 1.0
    assert report["painter"]["end_to_end"]["psnr_db"] >= 60


def test_weights_above_two_gigabytes_lie_beside_the_graph(repository: Path) -> None:
    version = repository / "full_painter_unet" / "1"
    assert {path.name for path in version.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (version / "model.onnx").stat().st_size < 100 << 20 < (version / "model.onnx.data").stat().st_size


@OF_TRITON
@HAS_TRITON
async def test_one_image_is_the_same_from_both_hosts(repository: Path) -> None:
    embedded = await paint(repository, num_lanes=1)
    assert embedded.std() > 1
    with triton_server([repository]) as server:
        options = TritonOptions(server.address, timeout_s=600.0)
        served = await paint(repository, backend="triton", triton=options, num_lanes=1)
    assert np.abs(served - embedded).max() <= TOLERANCE
