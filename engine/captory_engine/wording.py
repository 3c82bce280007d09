"""A language model's words for one image: bounded attempts, and none of them trusted. What is refused falls back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from captory_engine.cache import SingleFlight, content_key
from captory_engine.errors import BadOutput, Unsuited
from captory_engine.modes import SPOKEN, Acceptance, Instruction
from captory_engine.prompts import accept_rewrite, plain_words
from captory_engine.stages import Share

MAX_ANSWER_CHARS = 64 << 10

_THOUGHTS = re.compile(r"^\s*<think>.*?(?:</think>|\Z)", re.DOTALL)


class Writer(Protocol):
    """A language model, here or behind a server."""

    async def attempt(self, instruction: Instruction, words: Mapping[str, str], seed: int, share: Share) -> str:
        """One answer, whatever it is; `words` are the values of the instruction's fields.

        Raises `BadOutput` for an answer that cannot be text, `Unsuited` for a request that it would never answer, and
        `Unavailable` when the writer is away for longer than its own bounded patience.
        """
        ...


class Worded(NamedTuple):
    """What came of the attempts: the model's words, or none when every attempt was refused.

    A cache knows an entry that is None from one that is not there by this.
    """

    text: str | None


@dataclass(frozen=True, slots=True)
class Wording:
    """A writer with a filter and a memory. Rewriting as in Lei et al., arXiv 2307.08526."""

    writer: Writer
    cache: SingleFlight[Worded]

    async def words(
        self, instruction: Instruction, rule: Acceptance, given: Mapping[str, str], seed: int, share: Share
    ) -> str | None:
        """The words for one image, sampled by `seed`; None when every attempt was refused."""
        known = [instruction.model_dump_json(), rule.model_dump_json(), json.dumps(given, sort_keys=True)]
        key = content_key(*known, str(seed), str(share.exact))

        async def compute() -> Worded:
            return Worded(await self._accepted(instruction, rule, given, seed, share))

        return (await self.cache.get(key, compute)).text

    async def _accepted(
        self, instruction: Instruction, rule: Acceptance, given: Mapping[str, str], seed: int, share: Share
    ) -> str | None:
        for attempt in range(instruction.max_attempts):
            try:
                answer = await self.writer.attempt(instruction, given, seed + attempt, share)
            except Unsuited:
                return None
            except BadOutput:
                continue
            text = plain_words(spoken(answer, structured=instruction.json_schema is not None))
            if accept_rewrite(text, rule):
                return text
        return None


def spoken(answer: str, *, structured: bool) -> str:
    """The words of an answer; in a structured one its object's `text`. A writer without schemas answers plainly.

    What a model thinks aloud first is none of it; one that thinks to the end says nothing.
    """
    words = _THOUGHTS.sub("", answer[:MAX_ANSWER_CHARS]).strip()
    if not structured or not words.startswith("{"):
        return words
    try:
        value = json.loads(words)
    except (ValueError, RecursionError):
        return ""
    text = value.get(SPOKEN) if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""
