"""The whole job with painter and vision encoder behind a real Triton, against the embedded engine.

`make test-triton` runs this; without its environment it is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from lives import fates, items
from main_job import SAMPLE, run
from real_triton import NEEDS_TRITON

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.pipeline import Pipeline
from captory_engine.repository import default_repository
from captory_engine.sessions.options import TritonOptions
from captory_engine.sessions.triton_memory import MOUNT, PREFIX
from captory_export.triton.host import triton_server

ROOT = default_repository()
TOLERANCE = 1  # grey levels of 255: the number of threads may change the last bits

pytestmark = NEEDS_TRITON


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with triton_server([ROOT], num_threads=1) as server:
        yield server.address


@pytest.fixture
async def embedded() -> AsyncIterator[Pipeline]:
    pipeline = await open_pipeline(EngineConfig(ROOT, num_threads=1))
    yield pipeline
    await pipeline.close()


@pytest.mark.parametrize("shared_memory", [True, False])
async def test_images_are_those_of_the_embedded_engine(
    address: str, embedded: Pipeline, *, shared_memory: bool
) -> None:
    before, options = regions(), TritonOptions(address, shared_memory=shared_memory)
    pipeline = await open_pipeline(EngineConfig(ROOT, backend="triton", num_threads=1, triton=options))
    try:
        found = await fates(pipeline, items(pipeline, 24))
        expected = await fates(embedded, items(embedded, 24))
    finally:
        await pipeline.close()
    assert pipeline.info.backend.startswith("triton ")
    assert found.keys() == expected.keys()
    for key, fate in found.items():
        assert fate.prompt == expected[key].prompt
        np.testing.assert_allclose(fate.pixels, expected[key].pixels, atol=TOLERANCE, err_msg=key)
    assert pipeline.device.counts["denoise"].useful_rows > 3 * pipeline.device.counts["denoise"].batches
    assert regions() == before


def regions() -> list[Path]:
    """Shared memory that is ours."""
    return list(MOUNT.glob(f"{PREFIX}{os.getpid()}-*"))


def test_a_folder_becomes_a_dataset(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTORY_BACKEND", "triton")
    monkeypatch.setenv("CAPTORY_TRITON__ADDRESS", address)
    done = run(SAMPLE, tmp_path / "out")
    assert done.code == 0, done.stderr
    assert done.summary["images"] == done.summary["items"] > 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["images"] == done.summary["images"]
