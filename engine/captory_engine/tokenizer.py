"""Text to token ids and back, and the fixed-length form that a painter's text encoder takes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from captory_engine.errors import BadModel
from captory_engine.modes import TokenPolicy

# Ours, then CLIP's, then T5's; the first that the vocabulary knows. CLIP pads with its end token.
_BOS = ("<|bos|>", "<|startoftext|>")
_EOS = ("<|eos|>", "<|endoftext|>", "</s>")
_PAD = ("<|pad|>", "<|endoftext|>", "<pad>")
FRAMED_PROMPTS = 1024  # kept: images of one item share their prompt, and most items their negative one
_CLAUSE_END = re.compile(r"(?<=[,;:.!?])\s+")


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as the text encoder takes it: bos, text, eos, padding.

    `ids`: int64 [max_tokens], read-only. `token_count` is the length before the policy, bos and eos included. A
    `dropped` prompt must not be painted; its ids are cut like those of a `truncated` one.
    """

    ids: NDArray[np.int64]
    token_count: int
    truncated: bool = False
    dropped: bool = False


class Tokenizer:
    """A `tokenizer.json`. Text that spells a special token stays text. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._templates = _load(path)
        self._tokenizer = _load(path)
        self._tokenizer.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """How many ids there are, special tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of the bare text, without bos and eos."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def template_ids(self, template: str) -> list[int]:
        """Return the ids of a family's own template, in which special tokens are meant as such."""
        return list(self._templates.encode(template, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens and outer spaces."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def count(self, text: str) -> int:
        """Return the number of tokens of the bare text."""
        return len(self.encode(text))

    def known_id(self, *spellings: str) -> int | None:
        """Return the id of the first spelling that the vocabulary knows; None when it knows none."""
        ids = (self._tokenizer.token_to_id(spelling) for spelling in spellings)
        return next((int(one) for one in ids if one is not None), None)

    def special_id(self, *spellings: str) -> int:
        """Return the id of the first spelling that the vocabulary knows. Raises `BadModel` when it knows none."""
        known = self.known_id(*spellings)
        if known is not None:
            return known
        raise BadModel("TOKENIZER_INVALID", f"{str(self._path)!r} knows no token {' or '.join(spellings)}.")


class PromptTokenizer:
    """Frames prompts for a text encoder that takes exactly `max_tokens` ids, filled up with `pad_id` or its own.

    A vocabulary without a token for the beginning (T5's) has none put there.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, pad_id: int | None = None) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._begin = [bos] if (bos := tokenizer.known_id(*_BOS)) is not None else []
        self._eos = tokenizer.special_id(*_EOS)
        self._pad = tokenizer.special_id(*_PAD) if pad_id is None else pad_id
        self._room = max_tokens - len(self._begin) - 1
        self._framed = lru_cache(FRAMED_PROMPTS)(self._frame)
        self._split = lru_cache(FRAMED_PROMPTS)(self._parts)

    def encode(self, text: str, policy: TokenPolicy = TokenPolicy.TRUNCATE) -> PromptTokens:
        """Return bos + text + eos, padded; a text that is too long is cut before eos, or marked as dropped."""
        return self._framed(text, policy)

    def split(self, text: str) -> tuple[str, ...]:
        """Return `text` in as few parts as fit one after another, cut between clauses, else words, else in a word."""
        return self._split(text)

    def _parts(self, text: str) -> tuple[str, ...]:
        parts: list[str] = []
        for piece in self._pieces(text):
            if parts and self._fits(f"{parts[-1]} {piece}"):
                parts[-1] += f" {piece}"
            else:
                parts.append(piece)
        return tuple(parts) or (text,)

    def _pieces(self, text: str) -> Iterator[str]:
        for clause in _CLAUSE_END.split(text.strip()):
            if self._fits(clause):
                yield clause
            else:
                for word in clause.split():
                    yield from self._cut(word)

    def _cut(self, word: str) -> Iterator[str]:
        """The word in one piece, or in the longest pieces that fit."""
        while word:
            num_chars = self._num_fitting(word)
            yield word[:num_chars]
            word = word[num_chars:]

    def _num_fitting(self, word: str) -> int:
        """How many of its characters fit, and at least one, so that cutting ends."""
        if self._fits(word):
            return len(word)
        return max(1, bisect_left(range(1, len(word)), True, key=lambda num: not self._fits(word[:num])))

    def _fits(self, text: str) -> bool:
        return self._tokenizer.count(text) <= self._room

    def _frame(self, text: str, policy: TokenPolicy) -> PromptTokens:
        text_ids = self._tokenizer.encode(text)
        framed = [*self._begin, *text_ids[: self._room], self._eos]
        ids = np.full(self.max_tokens, self._pad, dtype=np.int64)
        ids[: len(framed)] = framed
        ids.setflags(write=False)
        token_count = len(text_ids) + len(self._begin) + 1
        too_long, drops = token_count > self.max_tokens, policy is TokenPolicy.DROP
        return PromptTokens(ids, token_count, truncated=too_long and not drops, dropped=too_long and drops)


def _load(path: Path) -> Any:
    try:
        tokenizer: Any = RustTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadModel("TOKENIZER_INVALID", f"{str(path)!r} is no tokenizer.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
