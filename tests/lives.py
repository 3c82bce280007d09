"""Items for a real pipeline, and what became of them: whatever hosts its graphs or its words."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from captory_engine.errors import CaptoryError
from captory_engine.items import Event, Failed, Item, Painted, Prompted, Sample
from captory_engine.pipeline import Pipeline

SAMPLE = Path(__file__).parents[1] / "clients" / "captory_client" / "sample"


class Fate(NamedTuple):
    """What became of an item."""

    prompt: str
    pixels: np.ndarray | None
    reason: str


def items(pipeline: Pipeline, num: int, *, steps: int = 3) -> list[Item]:
    """Photographs of the sample, each to be captioned and painted once."""
    parameters = replace(pipeline.info.defaults, steps=steps)
    photos = sorted(SAMPLE.glob("*/*.png"))[:num]
    return [
        Item(f"i{seed}", parameters, (Sample(0, 0, seed),), class_name=photo.parent.name, image=photo.read_bytes())
        for seed, photo in enumerate(photos)
    ]


async def fates(
    pipeline: Pipeline, wanted: Sequence[Item], on_image: Callable[[], object] = lambda: None
) -> dict[str, Fate]:
    """Run all items at once; `on_image` is called for every image."""

    async def live(item: Item) -> Fate:
        events: list[Event] = []
        try:
            async for event in pipeline.run(item):
                events.append(event)
                if isinstance(event, Painted):
                    on_image()
        except CaptoryError as error:
            return Fate("", None, error.reason)
        return _fate(events)

    return dict(zip((item.id for item in wanted), await asyncio.gather(*map(live, wanted)), strict=True))


def _fate(events: Sequence[Event]) -> Fate:
    prompt = next((event.text for event in events if isinstance(event, Prompted)), "")
    images = [event for event in events if isinstance(event, Painted)]
    reasons = [event.reason for event in events if isinstance(event, Failed)]
    assert len(images) + len(reasons) == 1, "an item ends once"
    return Fate(prompt, _pixels(images[0].data) if images else None, reasons[0] if reasons else "")


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)
