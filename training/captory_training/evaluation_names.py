"""What a class name tells a painter, alone and with a caption (Lei et al., arXiv 2307.08526), raw and curated.

Four names of the picture world mean two things each. A true picture of one of them is captioned, a prompt is made as
the arm makes it, and the oracle reads whether the painted image shows the same of the two. All arms have the same
pictures and the same noise; both differ from seed to seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import NamedTuple

from captory_client.client import Client
from captory_training.evaluation import (
    FIRST_SCENE,
    SCENES_A_SEED,
    Pixels,
    Progress,
    Settings,
    Share,
    ask_all,
    caption,
    is_right,
    paint,
    serving,
)
from captory_training.oracle import Oracle, Reading
from captory_training.picto.kinds import KIND_BY_KEY, KINDS, Kind
from captory_training.picto.render import render
from captory_training.picto.scene import Scene, sample_scene

_LOOKS = Counter(kind.class_name for kind in KINDS)
POLYSEMOUS = tuple(kind for kind in KINDS if _LOOKS[kind.class_name] > 1)
MAX_SCENES = 4096  # of a seed: about one scene in thirteen is of the kind whose turn it is


class Arm(NamedTuple):
    """How a prompt is made: its mode on the wire, and which of a class's two names stands in it."""

    mode: str
    curated: bool

    def class_name(self, kind: Kind) -> str:
        """Raw is the name that two kinds share; curated says which of them, as "kite (bird of prey)" does."""
        return kind.singular if self.curated else kind.class_name


BASELINE = "basic, raw name"
ARMS = {
    BASELINE: Arm("MODE_BASIC", curated=False),
    "basic, curated name": Arm("MODE_BASIC", curated=True),
    "cip, raw name": Arm("MODE_CIP", curated=False),
    "cip, curated name": Arm("MODE_CIP", curated=True),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed: its scenes, and by arm what was read in the images; None where none came, which counts as wrong."""

    scenes: list[Scene]
    readings: dict[str, list[Reading | None]]

    def share(self, arm: str, attribute: str, class_name: str = "") -> Share:
        """How often an attribute is right, of all images or of those of one class."""
        pairs = [
            pair
            for pair in zip(self.scenes, self.readings[arm], strict=True)
            if not class_name or KIND_BY_KEY[pair[0].kind].class_name == class_name
        ]
        return Share(sum(is_right(attribute, *pair) for pair in pairs), len(pairs))


class _Question(NamedTuple):
    arm: Arm
    scene: Scene
    caption: str | None


def polysemous_scenes(num: int, seed: int) -> list[Scene]:
    """Fresh scenes of kinds that share their name with another; the kinds take turns."""
    assert num <= MAX_SCENES
    fresh = map(sample_scene, count(FIRST_SCENE + seed * SCENES_A_SEED))
    turns = islice(cycle(POLYSEMOUS), num)
    return [next(scene for scene in fresh if scene.kind == kind.key) for kind in turns]


async def compare(settings: Settings, num_seeds: int, progress: Progress) -> list[Trial]:
    """Run every arm on `num_seeds` seeds from the settings' own on. Raises `ClientError`, `FileNotFoundError`."""
    oracle = Oracle(settings.repository)
    async with serving(settings) as client:
        seeds = range(settings.seed, settings.seed + num_seeds)
        return [await _trial(client, oracle, settings, seed, progress) for seed in seeds]


async def _trial(client: Client, oracle: Oracle, settings: Settings, seed: int, progress: Progress) -> Trial:
    scenes = polysemous_scenes(settings.num_scenes, seed)
    pictures = [render(scene) for scene in scenes]
    captions = await ask_all(lambda picture: caption(client, picture, "short"), pictures, "caption", progress)
    questions = [_Question(arm, *pair) for arm in ARMS.values() for pair in zip(scenes, captions, strict=True)]
    paintings = await ask_all(lambda question: _paint(client, question, settings), questions, "paint", progress)
    readings = _read(oracle, paintings)
    return Trial(scenes, {name: list(islice(readings, len(scenes))) for name in ARMS})


async def _paint(client: Client, question: _Question, settings: Settings) -> Pixels | None:
    """One arm's image of a scene. Where the caption did not come, no arm has one: they stay alike."""
    arm, scene, words = question
    if not words:
        return None
    [prompt] = await client.prompt(words, class_name=arm.class_name(KIND_BY_KEY[scene.kind]), mode=arm.mode)
    return await paint(client, prompt.text, scene.seed, settings)


def _read(oracle: Oracle, paintings: Sequence[Pixels | None]) -> Iterator[Reading | None]:
    """What each image shows, in order."""
    readings = iter(oracle.read([painting for painting in paintings if painting is not None]))
    return (next(readings) if painting is not None else None for painting in paintings)
