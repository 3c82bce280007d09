"""The family's tokenizer: fixed special ids, nothing unknown, texts come back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from captory_training.picto.captions import CAPTION_QUALITIES, caption
from captory_training.picto.kinds import KINDS
from captory_training.picto.scene import BACKGROUNDS, COLOURS, sample_scene
from captory_training.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    decode,
    encode,
    load_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(num_scenes=1500).save(str(path))
    return load_tokenizer(path)


def test_special_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert (PAD_ID, BOS_ID, EOS_ID) == (0, 1, 2)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE


def test_training_again_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(num_scenes=40).to_str() == train_tokenizer(num_scenes=40).to_str()


def test_encode_frames_a_text_for_the_painter(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a red mug").ids
    assert ids == [BOS_ID, *encode(tokenizer, "a red mug"), EOS_ID]


@pytest.mark.parametrize("word", [*COLOURS, *BACKGROUNDS, *(word for kind in KINDS for word in kind.plural.split())])
def test_the_worlds_words_are_single_tokens(tokenizer: Tokenizer, word: str) -> None:
    assert len(encode(tokenizer, f"a {word}")) == 2


@pytest.mark.parametrize("quality", CAPTION_QUALITIES)
def test_captions_come_back(tokenizer: Tokenizer, quality: str) -> None:
    for index in range(50):
        text = caption(sample_scene(index), quality, index)
        ids = encode(tokenizer, text)
        assert decode(tokenizer, ids) == text
        assert len(ids) < 48


@given(text=st.text())
def test_any_text_encodes_and_comes_back_normalised(tokenizer: Tokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert all(len(SPECIAL_TOKENS) <= token_id < VOCAB_SIZE for token_id in ids)
    assert decode(tokenizer, ids) == tokenizer.normalizer.normalize_str(text).strip()


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_caption_cannot_smuggle_in_a_special_token(tokenizer: Tokenizer, token: str) -> None:
    ids = encode(tokenizer, f"a mug {token} in red")
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert decode(tokenizer, ids) == f"a mug {token} in red"
