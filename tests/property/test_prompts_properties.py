"""Prompts from any text at all."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captory_engine.errors import InvalidInput
from captory_engine.items import Mode
from captory_engine.prompts import accept_rewrite, build_prompt, clean_model_text, recap_mix_length

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


@given(ANY_TEXT, st.integers(1, 300))
def test_clean_text_is_plain_bounded_and_stays_as_it_is(text: str, max_chars: int) -> None:
    clean = clean_model_text(text, max_chars)
    assert len(clean) <= max_chars
    assert clean == clean.strip() == unicodedata.normalize("NFC", clean) == clean_model_text(clean, max_chars)
    assert not any(unicodedata.category(char)[0] == "C" for char in clean)
    assert clean.split() == clean.split(" ") or not clean
    clean.encode()


@given(st.sampled_from(Mode), ANY_TEXT, ANY_TEXT)
def test_a_prompt_holds_what_its_mode_promises(mode: Mode, class_name: str, caption: str) -> None:
    if mode is not Mode.BASIC and not clean_model_text(caption):
        with pytest.raises(InvalidInput):
            build_prompt(mode, class_name, caption)
        return
    prompt = build_prompt(mode, class_name, caption)
    assert prompt
    if mode is not Mode.BASIC:
        assert prompt.endswith(clean_model_text(caption))
    if mode in (Mode.BASIC, Mode.CIP, Mode.REWRITE):
        assert clean_model_text(class_name) in prompt


@given(st.integers(0, 2**53 - 1))
def test_recap_mix_is_a_function_of_the_seed(seed: int) -> None:
    assert recap_mix_length(seed) == recap_mix_length(seed)
    assert recap_mix_length(seed) in ("short", "long")


@given(ANY_TEXT)
def test_accepted_rewrites_are_ascii_and_of_a_sane_length(text: str) -> None:
    if accept_rewrite(text):
        assert text.isascii()
        assert 5 < len(text.split()) < 65
