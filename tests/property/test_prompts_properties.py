"""Prompts from any text at all."""

from __future__ import annotations

import unicodedata

import pytest
from families import fake_repository
from hypothesis import given
from hypothesis import strategies as st

from captory_engine.errors import InvalidInput
from captory_engine.items import Mode
from captory_engine.modes import TokenPolicy, WriterKind, read_modes
from captory_engine.prompts import accept_rewrite, build_prompt, clean_model_text, given_words, recap_mix_length
from captory_engine.tokenizer import PromptTokenizer, Tokenizer
from captory_engine.wording import spoken

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
PLANS = read_modes().plans
LONG_TEXT = st.lists(st.text(max_size=60), max_size=8).map(", ".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a byte."""
    return Tokenizer(fake_repository(tmp_path_factory.mktemp("repository")) / "fake_text" / "tokenizer.json")


@given(ANY_TEXT, st.integers(1, 300))
def test_clean_text_is_plain_bounded_and_stays_as_it_is(text: str, max_chars: int) -> None:
    clean = clean_model_text(text, max_chars)
    assert len(clean) <= max_chars
    assert clean == clean.strip() == unicodedata.normalize("NFC", clean) == clean_model_text(clean, max_chars)
    assert not any(unicodedata.category(char)[0] == "C" for char in clean)
    assert clean.split() == clean.split(" ") or not clean
    clean.encode()


@given(st.sampled_from(Mode), ANY_TEXT, ANY_TEXT, st.none() | ANY_TEXT)
def test_a_prompt_holds_what_its_mode_promises(mode: Mode, class_name: str, caption: str, words: str | None) -> None:
    plan = PLANS[mode]
    written = clean_model_text(words) if words is not None and plan.writer is WriterKind.MODEL else None
    if mode is not Mode.BASIC and not clean_model_text(caption):
        with pytest.raises(InvalidInput):
            given_words(plan, class_name, caption)
        return
    fields = given_words(plan, class_name, caption)
    prompt = build_prompt(plan, fields, written)
    told = {Mode.BASIC: "", Mode.FACE: fields["attributes"]}.get(mode, fields["caption"])
    assert prompt.endswith(told if written is None else written)
    if "c" in plan.fields:
        assert clean_model_text(class_name) in prompt


@given(LONG_TEXT, st.integers(6, 40))
def test_every_part_of_a_split_prompt_fits_and_no_word_is_lost(
    tokenizer: Tokenizer, text: str, max_tokens: int
) -> None:
    framing = PromptTokenizer(tokenizer, max_tokens)
    parts = framing.split(text)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(framing.encode(part, TokenPolicy.SPLIT).token_count <= max_tokens for part in parts)
    assert parts == framing.split(text)


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=30))
def test_words_that_fit_stay_whole_and_in_order(tokenizer: Tokenizer, words: list[str]) -> None:
    parts = PromptTokenizer(tokenizer, 14).split(" ".join(words))
    assert " ".join(parts).split() == words


@given(st.integers(0, 2**53 - 1), st.floats(0, 1))
def test_recap_mix_is_a_function_of_the_seed(seed: int, share: float) -> None:
    assert recap_mix_length(seed, share) == recap_mix_length(seed, share)
    assert recap_mix_length(seed, share) in ("short", "long")


@given(ANY_TEXT)
def test_accepted_rewrites_are_ascii_and_of_a_sane_length(text: str) -> None:
    if accept_rewrite(text):
        assert text.isascii()
        assert 5 < len(text.split()) < 65


@given(ANY_TEXT | st.recursive(st.none() | st.text(), st.lists).map(str) | st.text().map(lambda text: "{" + text))
def test_any_answer_at_all_is_read_to_text(answer: str) -> None:
    assert isinstance(spoken(answer, structured=True), str)
