"""A checkpoint's tokenizer as the one file that the engine reads, `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from captory_engine.errors import BadModel


def tokenizer_json(folder: Path) -> bytes:
    """The contents of `tokenizer.json`, made of vocabulary and merges where there is none. Raises `BadModel`."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return str(fast_tokenizer(folder).backend_tokenizer.to_str()).encode()
    content = file.read_bytes()
    try:
        Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception
        raise BadModel("TOKENIZER_INVALID", f"{str(file)!r} is no tokenizer.") from error
    return content


def encoder(content: bytes) -> Callable[[str], list[int]]:
    """What makes ids of a text by a `tokenizer.json` as the engine does: nothing is added, cut off or filled up."""
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def pad_id(folder: Path) -> int:
    """The id that fills up what is too short. Raises `BadModel` when there is none."""
    found = fast_tokenizer(folder).pad_token_id
    if found is None:
        raise BadModel("TOKENIZER_INVALID", f"The tokenizer in {str(folder)!r} has no pad_token; set one.")
    return int(found)


def fast_tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers has it, with its special tokens. Raises `BadModel`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its many converters raise nearly anything
        raise _unusable(folder) from error
    if not tokenizer.is_fast:
        raise _unusable(folder)
    return tokenizer


def _unusable(folder: Path) -> BadModel:
    words = "Where sentencepiece is installed, AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one"
    return BadModel("TOKENIZER_MISSING", f"{str(folder)!r} has no tokenizer.json, and none can be made. {words}.")
