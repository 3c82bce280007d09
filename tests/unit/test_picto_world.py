"""The picture world: deterministic, valid, visible, and captioned so that the facts can be read back."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captory_training.picto.__main__ import main
from captory_training.picto.captions import CAPTION_QUALITIES, caption, full_caption
from captory_training.picto.kinds import CLASS_NAMES, KIND_BY_KEY, KINDS
from captory_training.picto.reading import CaptionReading, read_caption
from captory_training.picto.render import ARTISTS, render
from captory_training.picto.scene import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS_BY_COUNT,
    FaceTraits,
    Group,
    Scene,
    sample_scene,
)
from captory_training.picto.sheet import contact_sheet, sample_by_kind

SEEDS = st.integers(min_value=0, max_value=2**32)
NUM_SAMPLED = 600
PLAIN_FACE = FaceTraits(hair="brown", skin="medium", age="adult", glasses=False, beard=False, hat=False, smile=True)
ORDINARY_TEXT = re.compile(r"[a-z0-9 ,.'-]+")
NOISY_TEXT = re.compile(r"[a-z0-9 ,.'_-]+")


@pytest.fixture(scope="module")
def sampled() -> list[Scene]:
    return [sample_scene(seed) for seed in range(NUM_SAMPLED)]


def scene_of(kind: str, colour: str, background: str, *, count: int = 1) -> Scene:
    face = PLAIN_FACE if kind == "face" else None
    group = Group(kind=kind, colour=colour, count=count, size="large", position="centre", face=face)
    return Scene(groups=(group,), background=background, light="left", seed=5)


def facts(scene: Scene) -> CaptionReading:
    return CaptionReading(scene.kind, scene.colour, scene.count, scene.position, scene.background)


def test_thirteen_kinds_under_nine_class_names() -> None:
    assert len(KINDS) == 13
    assert CLASS_NAMES == ("crane", "bat", "mouse", "bass", "face", "house", "tree", "boat", "mug")
    assert {*ARTISTS, "face"} == KIND_BY_KEY.keys()


@given(SEEDS)
def test_same_seed_gives_same_scene_picture_and_captions(seed: int) -> None:
    first, second = sample_scene(seed, two_kind_share=0.3), sample_scene(seed, two_kind_share=0.3)
    assert first == second
    assert np.array_equal(render(first), render(second))
    assert all(caption(first, quality, seed) == caption(second, quality, seed) for quality in CAPTION_QUALITIES)


@given(SEEDS)
def test_scene_survives_json(seed: int) -> None:
    scene = sample_scene(seed, two_kind_share=0.3)
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@given(SEEDS)
def test_sampler_gives_only_valid_combinations(seed: int) -> None:
    scene = sample_scene(seed)
    (group,) = scene.groups
    assert group.position in POSITIONS_BY_COUNT[group.count]
    assert (group.face is not None) == (group.kind == "face")
    assert not (group.face and group.face.age == "child" and group.face.beard)


@given(SEEDS)
def test_two_kind_scene_has_one_object_left_and_another_kind_right(seed: int) -> None:
    left, right = sample_scene(seed, two_kind_share=1.0).groups
    assert left.kind != right.kind
    assert (left.position, right.position, left.count, right.count) == ("left", "right", 1, 1)


def test_sampler_covers_the_world(sampled: list[Scene]) -> None:
    assert {scene.kind for scene in sampled} == KIND_BY_KEY.keys()
    assert {scene.colour for scene in sampled} == set(COLOURS)
    assert {scene.background for scene in sampled} == set(BACKGROUNDS)
    singles = sum(scene.count == 1 for scene in sampled) / len(sampled)
    assert singles == pytest.approx(0.55, abs=0.08)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", KIND_BY_KEY)
def test_every_colour_is_visible_on_every_background(kind: str, background: str) -> None:
    pictures = [render(scene_of(kind, colour, background)).astype(float) for colour in COLOURS]
    bare = render(replace(scene_of(kind, "red", background), groups=())).astype(float)
    for picture in pictures:
        assert picture.shape == (64, 64, 3)
        assert (np.abs(picture - bare).max(axis=-1) > 30).mean() > 0.1
    gaps = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(gaps) > 1.0


@pytest.mark.parametrize("kind", KIND_BY_KEY)
def test_more_objects_change_the_picture(kind: str) -> None:
    pictures = [render(scene_of(kind, "red", "snow", count=count)).astype(float) for count in (1, 2, 3, 4)]
    assert all(np.abs(a - b).mean() > 5 for a, b in pairwise(pictures))


def test_picture_can_be_larger() -> None:
    assert render(sample_scene(3), size_px=128).shape == (128, 128, 3)


@given(SEEDS, SEEDS, st.sampled_from([0.0, 1.0]))
def test_long_captions_tell_every_fact(seed: int, caption_seed: int, two_kind_share: float) -> None:
    scene = sample_scene(seed, two_kind_share=two_kind_share)
    long = caption(scene, "long", caption_seed)
    assert read_caption(long) == read_caption(full_caption(scene)) == facts(scene)
    assert len(long.split()) <= 30
    assert scene.size in long


@given(SEEDS, SEEDS)
def test_short_captions_tell_kind_colour_and_count(seed: int, caption_seed: int) -> None:
    scene = sample_scene(seed)
    short = caption(scene, "short", caption_seed)
    reading = read_caption(short)
    assert (reading.kind, reading.colour, reading.count) == (scene.kind, scene.colour, scene.count)
    assert len(short.split()) <= 8


@given(SEEDS, SEEDS, st.sampled_from(CAPTION_QUALITIES))
def test_captions_are_short_lower_case_ascii(seed: int, caption_seed: int, quality: str) -> None:
    scene = sample_scene(seed, two_kind_share=0.3)
    text = caption(scene, quality, caption_seed)
    assert (NOISY_TEXT if quality == "noisy" else ORDINARY_TEXT).fullmatch(text)
    assert max(len(text.split()), len(full_caption(scene).split())) <= 48


def test_vocabulary_stays_small(sampled: list[Scene]) -> None:
    texts = [caption(scene, quality, scene.seed) for scene in sampled for quality in ("short", "long")]
    assert len({word.strip(",") for text in texts for word in text.split()}) < 250


def test_full_face_caption_names_every_trait() -> None:
    traits = FaceTraits(hair="none", skin="dark", age="old", glasses=True, beard=True, hat=True, smile=True)
    group = Group(kind="face", colour="orange", count=1, size="large", position="left", face=traits)
    scene = Scene(groups=(group,), background="brick", light="right", seed=0)
    assert full_caption(scene) == (
        "a large old face in orange with no hair, dark skin, glasses, a beard, a hat and a smile on the left, "
        "on a brick wall, lit from the right"
    )


def test_face_colour_is_not_its_hair_colour() -> None:
    reading = read_caption(
        "two small faces in blue with red hair and light skin at the top, on grass, lit from the left"
    )
    assert reading == CaptionReading("face", "blue", 2, "top", "grass")


def test_reading_of_foreign_text_is_empty() -> None:
    assert read_caption("img_2034") == CaptionReading(None, None, None, None, None)


def test_unknown_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown caption quality"):
        caption(sample_scene(0), "medium", 0)


def test_contact_sheet_shows_every_kind() -> None:
    scenes = sample_by_kind(seed=0, num_scenes=13)
    assert [scene.kind for scene in scenes] == list(KIND_BY_KEY)
    assert contact_sheet(scenes, 5, captions=True).width > contact_sheet(scenes, 3, captions=False).width


def test_command_writes_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    main(out=out, seed=1, rows=1, columns=2, captions=True)
    assert out.stat().st_size > 0
