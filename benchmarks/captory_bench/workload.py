"""What is sent: scenes of the picture world, as encoded photographs with a class name, or as prompts of mixed steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from captory_engine.images import encode_image
from captory_engine.items import ImageFormat
from captory_training.picto.captions import full_caption
from captory_training.picto.kinds import KIND_BY_KEY
from captory_training.picto.render import render
from captory_training.picto.scene import sample_scene

# Apart from the scenes of trainings (below 10_000_000) and of `captory eval` (from 1_000_000_000).
FIRST_SCENE = 2_000_000_000
SCENES_A_ROUND = 100_000
MIXED_STEPS = (8, 16, 24, 40)
SHORT_STEPS = MIXED_STEPS[0]


@dataclass(frozen=True, slots=True)
class Photo:
    """An encoded image of a scene, to be captioned and painted anew."""

    id: str
    data: bytes
    class_name: str
    seed: int


@dataclass(frozen=True, slots=True)
class Painting:
    """One image to be painted from a prompt."""

    id: str
    prompt: str
    steps: int
    seed: int


def photos(num: int, batch_of_scenes: int) -> list[Photo]:
    """`num` photographs. Another `batch_of_scenes` shares none, so that no cache serves one round to the next."""
    return [_photo(_first(batch_of_scenes) + index) for index in range(num)]


def paintings(num: int, batch_of_scenes: int) -> list[Painting]:
    """`num` prompts, the step counts of `MIXED_STEPS` in equal shares and shuffled."""
    first = _first(batch_of_scenes)
    steps = np.resize(MIXED_STEPS, num)
    np.random.default_rng(batch_of_scenes).shuffle(steps)
    return [
        Painting(f"painting-{seed}", full_caption(sample_scene(seed)), int(steps[seed - first]), seed)
        for seed in range(first, first + num)
    ]


def _first(batch_of_scenes: int) -> int:
    return FIRST_SCENE + batch_of_scenes * SCENES_A_ROUND


@lru_cache(maxsize=4096)
def _photo(seed: int) -> Photo:
    scene = sample_scene(seed)
    data = encode_image(render(scene), ImageFormat.PNG)
    return Photo(f"photo-{seed}", data, KIND_BY_KEY[scene.kind].class_name, seed)
