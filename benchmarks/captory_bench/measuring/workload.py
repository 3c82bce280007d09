"""What is sent: scenes of the picture world, as encoded photographs with a class name, or as prompts.

Prompts are of mixed steps and, where asked for, of mixed guidance.
"""

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
WARM_UP, TRIAL = 0, 1  # batches of scenes for what comes before the clock
MIXED_STEPS = (8, 16, 24, 40)
SHORT_STEPS = MIXED_STEPS[0]
UNGUIDED = 1.0  # the guidance scale, and below, that needs no unconditional row


@dataclass(frozen=True, slots=True)
class Photo:
    """An encoded image of a scene, to be captioned and painted anew."""

    id: str
    data: bytes
    class_name: str
    seed: int


@dataclass(frozen=True, slots=True)
class Painting:
    """One image to be painted from a prompt.

    `guidance_scale` None and `sampler` empty are the family's default; `guidance_interval` is in shares of the
    schedule, 0 its noisy end.
    """

    id: str
    prompt: str
    steps: int
    seed: int
    guidance_scale: float | None = None
    sampler: str = ""
    guidance_interval: tuple[float, float] = (0.0, 1.0)


def photos(num: int, batch_of_scenes: int) -> list[Photo]:
    """`num` photographs. Another `batch_of_scenes` shares none, so that no cache serves one round to the next."""
    return [_photo(_first(batch_of_scenes) + index) for index in range(num)]


def paintings(num: int, batch_of_scenes: int, *, mixed_guidance: bool = False) -> list[Painting]:
    """`num` prompts, the step counts of `MIXED_STEPS` in equal shares and shuffled.

    With `mixed_guidance` half of them are at `UNGUIDED`, in every step count alike.
    """
    first = _first(batch_of_scenes)
    kinds = np.arange(num)
    np.random.default_rng(batch_of_scenes).shuffle(kinds)
    return [_painting(first + index, int(kind), mixed_guidance) for index, kind in enumerate(kinds)]


def _painting(seed: int, kind: int, mixed_guidance: bool) -> Painting:
    """One prompt. Kinds count up through the step counts; from one round of them to the next guidance swaps over."""
    turn, place = divmod(kind, len(MIXED_STEPS))
    guidance = UNGUIDED if mixed_guidance and (turn + place) % 2 else None
    return Painting(f"painting-{seed}", full_caption(sample_scene(seed)), MIXED_STEPS[place], seed, guidance)


def _first(batch_of_scenes: int) -> int:
    return FIRST_SCENE + batch_of_scenes * SCENES_A_ROUND


@lru_cache(maxsize=4096)
def _photo(seed: int) -> Photo:
    scene = sample_scene(seed)
    data = encode_image(render(scene), ImageFormat.PNG)
    return Photo(f"photo-{seed}", data, KIND_BY_KEY[scene.kind].class_name, seed)
