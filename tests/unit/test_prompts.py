"""The prompt builder, mode by mode, on the shipped instruction files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from captory_engine.errors import InvalidInput
from captory_engine.items import Mode
from captory_engine.modes import Acceptance, read_modes
from captory_engine.prompts import (
    accept_rewrite,
    attributes_of,
    build_prompt,
    caption_length,
    clean_model_text,
    given_words,
    recap_mix_length,
)

PLANS = read_modes().plans
CLASS, CAPTION, WORDS = "kite (bird of prey)", "a brown bird in the sky", "high above us glides a brown bird"


def prompt(
    mode: Mode, class_name: str = "", caption: str = "", attributes: Sequence[str] = (), words: str | None = None
) -> str:
    plan = PLANS[mode]
    return build_prompt(plan, given_words(plan, class_name, caption, attributes), words)


@pytest.mark.parametrize(
    ("mode", "with_class", "without_class"),
    [
        (Mode.BASIC, f"a photo of {CLASS}", "a photo"),
        (Mode.CIP, f"a photo of {CLASS}, {CAPTION}", CAPTION),
        (Mode.CAPTION_ONLY, CAPTION, CAPTION),
        (Mode.RECAP_SHORT, CAPTION, CAPTION),
        (Mode.RECAP_LONG, CAPTION, CAPTION),
        (Mode.RECAP_MIX, CAPTION, CAPTION),
        (Mode.CLOSED_LOOP, f"a photo of {CLASS}, {CAPTION}", CAPTION),
        (Mode.SHUFFLED, f"a photo of {CLASS}, {CAPTION}", CAPTION),
        (Mode.CROSS_CLASS, f"a photo of {CLASS}, {CAPTION}", CAPTION),
        (Mode.REWRITE, f"a photo of {CLASS}, {CAPTION}", CAPTION),  # the words were refused
        (Mode.FACE, f"a photo of a face, {CAPTION}", f"a photo of a face, {CAPTION}"),
    ],
)
def test_prompt_of_each_mode(mode: Mode, with_class: str, without_class: str) -> None:
    assert prompt(mode, CLASS, CAPTION) == with_class
    assert prompt(mode, "", CAPTION) == without_class


def test_a_model_s_words_are_framed_by_their_mode() -> None:
    assert prompt(Mode.REWRITE, CLASS, CAPTION, words=WORDS) == f"a photo of {CLASS}, {WORDS}"
    assert prompt(Mode.REWRITE, "", CAPTION, words=WORDS) == WORDS
    assert prompt(Mode.FACE, CLASS, "", ["young", "smiling"], words=WORDS) == WORDS


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.BASIC])
@pytest.mark.parametrize("caption", ["", " \n\x00 "])
def test_no_arm_turns_into_another_for_want_of_a_caption(mode: Mode, caption: str) -> None:
    with pytest.raises(InvalidInput) as error:
        prompt(mode, CLASS, caption)
    assert error.value.reason == "CAPTION_EMPTY"


def test_attributes_are_the_item_s_own_or_the_caption_s_parts() -> None:
    assert prompt(Mode.FACE, caption="a face", attributes=[" young ", "a hat"]) == "a photo of a face, young, a hat"
    told = "a large old face in red with black hair and a hat, at sea, and lit from the left"
    assert attributes_of(told) == ["a large old face in red", "black hair", "a hat", "at sea", "lit from the left"]
    with pytest.raises(InvalidInput):
        prompt(Mode.FACE, attributes=["\x00"])


def test_text_that_spells_a_placeholder_stays_text() -> None:
    assert prompt(Mode.CIP, "{caption}", "{c} {0.__class__}") == "a photo of {caption}, {c} {0.__class__}"
    assert prompt(Mode.REWRITE, "{words}", "{c}", words="{caption}") == "a photo of {words}, {caption}"
    assert prompt(Mode.BASIC, "{nothing} {") == "a photo of {nothing} {"


def test_recap_mix_takes_each_length_about_half_the_time() -> None:
    longs = sum(recap_mix_length(seed) == "long" for seed in range(2000))
    assert 900 < longs < 1100
    assert caption_length(PLANS[Mode.RECAP_MIX], 7) == recap_mix_length(7)
    assert caption_length(PLANS[Mode.RECAP_LONG], 7) == "long"
    assert caption_length(PLANS[Mode.BASIC], 7) is None


def test_half_and_half_is_as_it_always_was() -> None:
    for seed in range(200):
        odd = hashlib.sha256(f"recap-mix:{seed}".encode()).digest()[0] & 1
        assert recap_mix_length(seed) == ("long" if odd else "short")


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 0), (0.1, 150, 250), (0.95, 1850, 1950), (1.0, 2000, 2000)]
)
def test_the_share_of_long_captions_is_as_the_file_says(share: float, low: int, high: int) -> None:
    longs = {seed for seed in range(2000) if recap_mix_length(seed, share) == "long"}
    assert low <= len(longs) <= high
    assert longs <= {seed for seed in range(2000) if recap_mix_length(seed, min(1.0, share + 0.05)) == "long"}


def test_who_brings_attributes_needs_no_caption() -> None:
    assert caption_length(PLANS[Mode.FACE], 7, ["young"]) is None
    assert caption_length(PLANS[Mode.FACE], 7) == "long"
    assert caption_length(PLANS[Mode.CIP], 7, ["young"]) == "short"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a \n\t dog\r\n", "a dog"),
        ("a\x00 b\x1b[31m", "a b[31m"),
        ("a \u202eb\u200b", "a b"),
        ("cafe\u0301", "café"),
        ("\ud800x", "x"),
        ("x" * 3000, "x" * 2000),
    ],
)
def test_model_text_is_made_plain(text: str, clean: str) -> None:
    assert clean_model_text(text) == clean


@pytest.mark.parametrize(
    ("num_words", "accepted"), [(0, False), (5, False), (6, True), (64, True), (65, False), (1000, False)]
)
def test_rewrites_are_kept_by_length(num_words: int, accepted: bool) -> None:
    assert accept_rewrite("word " * num_words) is accepted


def test_rewrites_that_are_not_ascii_are_refused_unless_the_file_takes_them() -> None:
    told = "a café in the middle of town"
    assert not accept_rewrite(told)
    assert accept_rewrite(told, Acceptance(ascii=False))
    assert not accept_rewrite(told, Acceptance(ascii=False, min_words=8))
