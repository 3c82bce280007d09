"""Captions of a scene in three qualities: noisy as on the web, short, and long.

Every face wears its colour, so faces are captioned "a face in red", "two faces in blue".
"""

import numpy as np

from captory_training.picto.kinds import CLASS_NAMES, KIND_BY_KEY
from captory_training.picto.scene import COLOURS, FaceTraits, Group, Scene
from captory_training.picto.words import (
    AGE_WORDS,
    BACKGROUND_PHRASES,
    LIGHT_PHRASES,
    NUMBER_WORDS,
    POSITION_PHRASES,
)

CAPTION_QUALITIES = ("noisy", "short", "long")

SHORT_TEMPLATES = ("{what}", "{what} {where}", "{where}, {what}", "a picture of {what}")
LONG_TEMPLATES = (
    "{what} {position}, {where}, {light}",
    "{what} {position} {where}, {light}",
    "{what} {where}, {position}, {light}",
    "{where}, {what} {position}, {light}",
    "{position}, {what} {where}, {light}",
)
NOISY_TEMPLATES = (
    "img_{number} {name}",
    "{name}_{number}.jpg",
    "buy {name} cheap",
    "my {name} photo {digit}",
    "{name}",
    "{name} for sale, free shipping",
    "photo of {name}",
    "dsc_{number}",
    "{colour} {name} wallpaper",
    "{kind} picture {digit}",
    "the best {name} of {number}",
)
NOISY_MISTAKE_SHARE = 0.12
MAX_LONG_FACE_TRAITS = 4


def caption(scene: Scene, quality: str, seed: int) -> str:
    """One caption in lower-case ASCII, a pure function of its arguments.

    Raises ValueError for a quality outside `CAPTION_QUALITIES`.
    """
    rng = np.random.Generator(np.random.PCG64([seed, scene.seed, 2]))
    if quality == "noisy":
        return _noisy(scene, rng)
    if quality == "short":
        return _short(scene, rng)
    if quality == "long":
        return _long(scene, rng)
    raise ValueError(f"unknown caption quality {quality!r}, expected one of {CAPTION_QUALITIES}")


def full_caption(scene: Scene) -> str:
    """The canonical caption, with every attribute."""
    every_trait = [trait_phrases(group.face) for group in scene.groups]
    return _fill_long(scene, LONG_TEMPLATES[0], every_trait, rng=None)


def _noisy(scene: Scene, rng: np.random.Generator) -> str:
    kind = KIND_BY_KEY[scene.kind]
    wrong = rng.random() < NOISY_MISTAKE_SHARE
    return _pick(rng, NOISY_TEMPLATES).format(
        name=_pick(rng, CLASS_NAMES) if wrong else kind.class_name,
        kind=kind.singular,
        colour=_pick(rng, COLOURS) if wrong else scene.colour,
        number=int(rng.integers(1000, 10000)),
        digit=int(rng.integers(1, 10)),
    )


def _short(scene: Scene, rng: np.random.Generator) -> str:
    group, *others = scene.groups
    if others:
        return ", ".join(_noun_phrase(group) for group in scene.groups)
    what = _noun_phrase(group, one=_pick(rng, ("a", "a", "one")))
    return _pick(rng, SHORT_TEMPLATES).format(what=what, where=_phrase(BACKGROUND_PHRASES[scene.background], rng))


def _long(scene: Scene, rng: np.random.Generator) -> str:
    if len(scene.groups) > 1:
        return _fill_long(scene, LONG_TEMPLATES[0], [[] for _ in scene.groups], rng=None)
    traits = [_some_traits(group.face, rng) for group in scene.groups]
    return _fill_long(scene, _pick(rng, LONG_TEMPLATES), traits, rng)


def _fill_long(scene: Scene, template: str, traits: list[list[str]], rng: np.random.Generator | None) -> str:
    """Fills a long template, whose position is the last group's; without a generator, in canonical wording."""
    phrases = [_described(group, some) for group, some in zip(scene.groups, traits, strict=True)]
    positions = [_phrase(POSITION_PHRASES[group.position], rng) for group in scene.groups]
    before = [f"{phrase} {position}" for phrase, position in zip(phrases[:-1], positions[:-1], strict=True)]
    return template.format(
        what=" and ".join([*before, phrases[-1]]),
        position=positions[-1],
        where=_phrase(BACKGROUND_PHRASES[scene.background], rng),
        light=_phrase(LIGHT_PHRASES[scene.light], rng),
    )


def _described(group: Group, traits: list[str]) -> str:
    """The noun phrase with size and traits: "a large old face in red with black hair and a hat"."""
    if group.face is None:
        return _noun_phrase(group, group.size)
    adjectives = [group.size, *(trait for trait in traits if trait in AGE_WORDS.values())]
    worn = [trait for trait in traits if trait not in AGE_WORDS.values()]
    return _noun_phrase(group, " ".join(adjectives)) + (f" with {_listed(worn)}" if worn else "")


def _noun_phrase(group: Group, adjectives: str = "", one: str = "a") -> str:
    kind = KIND_BY_KEY[group.kind]
    noun = kind.singular if group.count == 1 else kind.plural
    coloured = f"{noun} in {group.colour}" if group.kind == "face" else f"{group.colour} {noun}"
    words = f"{adjectives} {coloured}".strip()
    number = one if group.count == 1 else NUMBER_WORDS[group.count]
    return f"{_article(number, words)} {words}"


def _article(number: str, words: str) -> str:
    return "an" if number == "a" and words[0] in "aeiou" else number


def trait_phrases(face: FaceTraits | None) -> list[str]:
    """Every trait of a face in the order in which captions name them."""
    if face is None:
        return []
    worn = (("glasses", face.glasses), ("a beard", face.beard), ("a hat", face.hat), ("a smile", face.smile))
    hair = "no hair" if face.hair == "none" else f"{face.hair} hair"
    return [AGE_WORDS[face.age], hair, f"{face.skin} skin", *(phrase for phrase, has in worn if has)]


def _some_traits(face: FaceTraits | None, rng: np.random.Generator) -> list[str]:
    """Two or more of a face's traits, in order."""
    phrases = trait_phrases(face)
    num_traits = min(len(phrases), int(rng.integers(2, MAX_LONG_FACE_TRAITS + 1)))
    chosen = sorted(rng.choice(len(phrases), size=num_traits, replace=False)) if phrases else []
    return [phrases[index] for index in chosen]


def _listed(phrases: list[str]) -> str:
    *before, last = phrases
    return f"{', '.join(before)} and {last}" if before else last


def _phrase(phrases: tuple[str, ...], rng: np.random.Generator | None) -> str:
    """The canonical phrase, or, given a generator, any of them."""
    return phrases[0] if rng is None else _pick(rng, phrases)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
