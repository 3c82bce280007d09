"""A checkpoint's tokenizer as one file, made where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tokenizers import Tokenizer

from captory_engine.errors import BadModel
from captory_export.token_files import encoder, pad_id, tokenizer_json

END = "<|endoftext|>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Vocabulary and merges, as GPT-2 and CLIP have them, without a `tokenizer.json`."""
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, END: 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "pad_token": END}))
    return tmp_path


def reason(folder: Path) -> str:
    with pytest.raises(BadModel) as refused:
        tokenizer_json(folder)
    return refused.value.reason


def test_vocabulary_and_merges_are_converted(folder: Path) -> None:
    content = tokenizer_json(folder)
    assert encoder(content)("abb") == [2, 1]
    assert Tokenizer.from_buffer(content).decode([2, 1, 3], skip_special_tokens=True) == "abb"


def test_a_tokenizer_that_fills_up_and_cuts_off_does_not_here(folder: Path) -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json(folder))
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(max_length=1)
    assert encoder(tokenizer.to_str().encode())("abb") == [2, 1]


def test_a_file_that_is_there_stays_as_it_is(folder: Path) -> None:
    content = tokenizer_json(folder).replace(b'"ab"', b'"\\u0061b"')
    (folder / "tokenizer.json").write_bytes(content)
    assert tokenizer_json(folder) == content


def test_what_fills_up(folder: Path) -> None:
    assert pad_id(folder) == 3
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(BadModel, match="pad_token"):
        pad_id(folder)


def test_what_cannot_be_converted_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert reason(folder) == "TOKENIZER_INVALID"
    other = tmp_path / "other"
    other.mkdir()
    assert reason(other) == "TOKENIZER_MISSING"
    (other / "tokenizer.model").write_bytes(b"sentencepiece")
    (other / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    assert reason(other) == "TOKENIZER_MISSING"
