"""The prompt builder, mode by mode."""

import pytest

from captory_engine.errors import InvalidInput
from captory_engine.items import Mode
from captory_engine.prompts import (
    PLANS,
    TokenPolicy,
    WriterKind,
    accept_rewrite,
    build_prompt,
    caption_length,
    clean_model_text,
    recap_mix_length,
)

CLASS, CAPTION = "kite (bird of prey)", "a brown bird in the sky"


@pytest.mark.parametrize(
    ("mode", "with_class", "without_class"),
    [
        (Mode.BASIC, f"a photo of {CLASS}", "a photo"),
        (Mode.CIP, f"a photo of {CLASS}, {CAPTION}", CAPTION),
        (Mode.REWRITE, f"a photo of {CLASS}, {CAPTION}", CAPTION),
        (Mode.CAPTION_ONLY, CAPTION, CAPTION),
        (Mode.RECAP_SHORT, CAPTION, CAPTION),
        (Mode.RECAP_LONG, CAPTION, CAPTION),
        (Mode.RECAP_MIX, CAPTION, CAPTION),
    ],
)
def test_prompt_of_each_mode(mode: Mode, with_class: str, without_class: str) -> None:
    assert build_prompt(mode, CLASS, CAPTION) == with_class
    assert build_prompt(mode, "", CAPTION) == without_class


def test_every_mode_has_a_plan_and_only_recap_drops() -> None:
    assert set(PLANS) == set(Mode)
    dropping = {mode for mode, plan in PLANS.items() if plan.policy is TokenPolicy.DROP}
    assert dropping == {Mode.RECAP_SHORT, Mode.RECAP_LONG, Mode.RECAP_MIX}
    assert {mode for mode, plan in PLANS.items() if plan.writer is WriterKind.MODEL} == {Mode.REWRITE}
    assert PLANS[Mode.BASIC].lengths == ()


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.BASIC])
@pytest.mark.parametrize("caption", ["", " \n\x00 "])
def test_no_arm_turns_into_another_for_want_of_a_caption(mode: Mode, caption: str) -> None:
    with pytest.raises(InvalidInput) as error:
        build_prompt(mode, CLASS, caption)
    assert error.value.reason == "CAPTION_EMPTY"


def test_text_that_spells_a_placeholder_stays_text() -> None:
    assert build_prompt(Mode.CIP, "{caption}", "{c} {0.__class__}") == "a photo of {caption}, {c} {0.__class__}"


def test_recap_mix_takes_each_length_about_half_the_time() -> None:
    longs = sum(recap_mix_length(seed) == "long" for seed in range(2000))
    assert 900 < longs < 1100
    assert caption_length(Mode.RECAP_MIX, 7) == recap_mix_length(7)
    assert caption_length(Mode.RECAP_LONG, 7) == "long"
    assert caption_length(Mode.BASIC, 7) is None


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


def test_rewrites_that_are_not_ascii_are_refused() -> None:
    assert not accept_rewrite("a café in the middle of town")
