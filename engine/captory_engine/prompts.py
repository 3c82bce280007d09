"""The one place where prompts are made from class names and captions (methods.md §1, §2, §5)."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from captory_engine.errors import InvalidInput
from captory_engine.items import Mode

CaptionLength = Literal["short", "long"]
MAX_TEXT_CHARS = 2000
# Lei et al., arXiv 2307.08526: a rewritten caption is kept if it is ASCII and 5 < words < 65.
MIN_REWRITE_WORDS, MAX_REWRITE_WORDS = 6, 64


class TokenPolicy(StrEnum):
    """What happens to a prompt that is longer than the text encoder takes."""

    TRUNCATE = "truncate"
    DROP = "drop"


class WriterKind(StrEnum):
    """Who words the caption clause of a prompt."""

    TEMPLATE = "template"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How one mode makes its prompt. `classless` is used when there is no class: the clause is dropped.

    `lengths` are the captions that the mode may need; none at all means that the captioner is not asked.
    """

    lengths: tuple[CaptionLength, ...]
    template: str
    classless: str
    policy: TokenPolicy = TokenPolicy.TRUNCATE
    writer: WriterKind = WriterKind.TEMPLATE


_CIP, _CAPTION = "a photo of {c}, {caption}", "{caption}"

PLANS: dict[Mode, PromptPlan] = {
    Mode.BASIC: PromptPlan((), "a photo of {c}", "a photo"),
    Mode.CIP: PromptPlan(("short",), _CIP, _CAPTION),
    Mode.CAPTION_ONLY: PromptPlan(("short",), _CAPTION, _CAPTION),
    Mode.RECAP_SHORT: PromptPlan(("short",), _CAPTION, _CAPTION, TokenPolicy.DROP),
    Mode.RECAP_LONG: PromptPlan(("long",), _CAPTION, _CAPTION, TokenPolicy.DROP),
    Mode.RECAP_MIX: PromptPlan(("short", "long"), _CAPTION, _CAPTION, TokenPolicy.DROP),
    Mode.REWRITE: PromptPlan(("long",), _CIP, _CAPTION, writer=WriterKind.MODEL),
}


def build_prompt(mode: Mode, class_name: str = "", caption: str = "") -> str:
    """Return the prompt of `mode`; for `rewrite`, `caption` is the rewritten one.

    Without a class the clause that names it is dropped: basic is "a photo", CiP is the caption alone. Raises
    `InvalidInput` when the mode needs a caption and there is none: no arm may turn into another one unnoticed.
    """
    plan = PLANS[mode]
    name, words = clean_model_text(class_name), clean_model_text(caption)
    if plan.lengths and not words:
        raise InvalidInput("CAPTION_EMPTY", f"Mode {mode.value} needs a caption, and there is none.", field="caption")
    template = plan.template if name else plan.classless
    # In two cuts rather than by format(): a name that spells "{caption}" stays as it is.
    return template.partition("{caption}")[0].replace("{c}", name) + (words if "{caption}" in template else "")


def caption_length(mode: Mode, seed: int) -> CaptionLength | None:
    """Return which caption the image with this seed uses; None when the mode uses none."""
    lengths = PLANS[mode].lengths
    if len(lengths) > 1:
        return recap_mix_length(seed)
    return lengths[0] if lengths else None


def recap_mix_length(seed: int) -> CaptionLength:
    """Return short or long, half and half over seeds (Segalis et al., arXiv 2310.16656, RECAP Mix)."""
    return "long" if hashlib.sha256(f"recap-mix:{seed}".encode()).digest()[0] & 1 else "short"


def clean_model_text(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return `text` in NFC on one line, without control, format and unassigned characters, at most `max_chars`."""
    kept = text[: 4 * max_chars]
    if not kept.isprintable():
        kept = "".join(char for char in kept if char.isspace() or unicodedata.category(char)[0] != "C")
    return unicodedata.normalize("NFC", " ".join(kept.split()))[:max_chars].rstrip()


def accept_rewrite(text: str) -> bool:
    """True when a rewritten caption may be used: ASCII, and 6 to 64 words. The caller bounds the attempts."""
    return text.isascii() and MIN_REWRITE_WORDS <= len(text.split()) <= MAX_REWRITE_WORDS
