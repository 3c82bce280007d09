"""The scene graph: what a picture shows, and the sampler that draws only valid combinations."""

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from captory_training.picto.kinds import KINDS

T = TypeVar("T")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BACKGROUNDS = ("grass", "sand", "sea", "night", "snow", "brick")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "centre")
COUNTS = (1, 2, 3, 4)
LIGHTS = ("left", "right")
POSITIONS_BY_COUNT: dict[int, tuple[str, ...]] = {
    1: POSITIONS,
    2: ("top", "bottom", "centre"),
    3: ("centre",),
    4: ("centre",),
}

HAIRS = ("none", "black", "brown", "blond", "red")
AGES = ("child", "adult", "old")
SKINS = ("light", "medium", "dark")


@dataclass(frozen=True)
class FaceTraits:
    """How a face looks; its colour (shirt and hat) is the group's."""

    hair: str
    skin: str
    age: str
    glasses: bool
    beard: bool
    hat: bool
    smile: bool


@dataclass(frozen=True)
class Group:
    """`count` equal objects; `face` is set for faces only."""

    kind: str
    colour: str
    count: int
    size: str
    position: str
    face: FaceTraits | None = None


@dataclass(frozen=True)
class Scene:
    """One group, or two groups of one object each (left and right); `seed` fixes pose and texture."""

    groups: tuple[Group, ...]
    background: str
    light: str
    seed: int

    @property
    def kind(self) -> str:
        """The first group's kind key."""
        return self.groups[0].kind

    @property
    def colour(self) -> str:
        """The first group's colour."""
        return self.groups[0].colour

    @property
    def count(self) -> int:
        """The first group's number of objects."""
        return self.groups[0].count

    @property
    def position(self) -> str:
        """The first group's position."""
        return self.groups[0].position

    @property
    def size(self) -> str:
        """The first group's size."""
        return self.groups[0].size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scene":
        """The inverse of `to_dict`."""
        return cls(**{**data, "groups": tuple(_group_from_dict(group) for group in data["groups"])})


def sample_scene(seed: int, *, two_kind_share: float = 0.0, single_share: float = 0.55) -> Scene:
    """Samples a valid scene, a pure function of its arguments.

    `two_kind_share` is the share of scenes with one object left and another kind right; of the rest,
    `single_share` show one object. Kinds are uniform.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    groups = _sample_pair(rng) if rng.random() < two_kind_share else (_sample_group(rng, single_share),)
    return Scene(groups=groups, background=_pick(rng, BACKGROUNDS), light=_pick(rng, LIGHTS), seed=seed)


def _sample_group(rng: np.random.Generator, single_share: float) -> Group:
    kind = _pick(rng, KINDS).key
    count = 1 if rng.random() < single_share else _pick(rng, COUNTS[1:])
    return _finish_group(rng, kind, count, _pick(rng, SIZES), _pick(rng, POSITIONS_BY_COUNT[count]))


def _sample_pair(rng: np.random.Generator) -> tuple[Group, Group]:
    left, right = (KINDS[index].key for index in rng.choice(len(KINDS), size=2, replace=False))
    size = _pick(rng, SIZES)
    return _finish_group(rng, left, 1, size, "left"), _finish_group(rng, right, 1, size, "right")


def _finish_group(rng: np.random.Generator, kind: str, count: int, size: str, position: str) -> Group:
    face = _sample_face(rng) if kind == "face" else None
    return Group(kind=kind, colour=_pick(rng, COLOURS), count=count, size=size, position=position, face=face)


def _sample_face(rng: np.random.Generator) -> FaceTraits:
    age = _pick(rng, AGES)
    return FaceTraits(
        hair=_pick(rng, HAIRS),
        skin=_pick(rng, SKINS),
        age=age,
        glasses=_chance(rng, 0.35),
        beard=_chance(rng, 0.35) and age != "child",
        hat=_chance(rng, 0.35),
        smile=_chance(rng, 0.6),
    )


def _group_from_dict(data: dict[str, Any]) -> Group:
    face = data["face"]
    return Group(**{**data, "face": FaceTraits(**face) if face else None})


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]
