"""The one place where prompts are made from class names and captions (methods.md §1, §2, §5); modes.py says of what."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from captory_engine.errors import InvalidInput
from captory_engine.modes import Acceptance, CaptionLength, PromptPlan, fill

MAX_TEXT_CHARS = 2000
PAPER_RULE = Acceptance()
_TYPESET = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
_BETWEEN_ATTRIBUTES = re.compile(r", (?:and )?| with | and ")


def given_words(
    plan: PromptPlan, class_name: str = "", caption: str = "", attributes: Sequence[str] = ()
) -> dict[str, str]:
    """What the fields of a template stand for in one image, each made plain. Without `attributes`, the caption's parts.

    Raises `InvalidInput` when the mode needs a caption and there is none: no arm may turn into another one unnoticed.
    """
    words = clean_model_text(caption)
    parts = map(clean_model_text, attributes or attributes_of(words))
    listed = clean_model_text(", ".join(part for part in parts if part))
    given = {"c": clean_model_text(class_name), "caption": words, "attributes": listed}
    if not all(given[name] for name in plan.needed):
        raise InvalidInput("CAPTION_EMPTY", "The mode needs a caption, and there is none.", field="caption")
    return given


def build_prompt(plan: PromptPlan, given: Mapping[str, str], words: str | None = None) -> str:
    """Return the prompt. In a mode with a language model `words` are its own, and None when they were refused.

    Without a class the clause that names it is dropped: basic is "a photo", CiP is the caption alone.
    """
    templates = plan.fallback if plan.fallback is not None and words is None else plan
    template = templates.template if given["c"] else templates.classless
    return clean_model_text(fill(template, {**given, "words": words or ""}))


def caption_length(plan: PromptPlan, seed: int, attributes: Sequence[str] = ()) -> CaptionLength | None:
    """Return which caption the image with this seed uses; None when the mode uses none, or what it needs was given."""
    if not plan.captions or (attributes and "caption" not in plan.needed):
        return None
    return plan.captions[0] if len(plan.captions) == 1 else recap_mix_length(seed, plan.long_share)


def recap_mix_length(seed: int, long_share: float = 0.5) -> CaptionLength:
    """Return long for this share of all seeds, else short (Segalis et al., arXiv 2310.16656, RECAP Mix: one half)."""
    digest = hashlib.sha256(f"recap-mix:{seed}".encode()).digest()
    half = 0.0 if digest[0] & 1 else 0.5
    return "long" if half + int.from_bytes(digest[1:5], "big") / 2**33 < long_share else "short"


def attributes_of(caption: str) -> list[str]:
    """The parts of a long caption as a list of attributes: "a face with glasses, on sand": face, glasses and place."""
    return _BETWEEN_ATTRIBUTES.split(caption)


def clean_model_text(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return `text` in NFC on one line, without control, format and unassigned characters, at most `max_chars`."""
    kept = text[: 4 * max_chars]
    if not kept.isprintable():
        kept = "".join(char for char in kept if char.isspace() or unicodedata.category(char)[0] != "C")
    return unicodedata.normalize("NFC", " ".join(kept.split()))[:max_chars].rstrip()


def plain_words(text: str) -> str:
    """A model's words, made plain; its quotation marks, dashes and dots as a keyboard has them."""
    return clean_model_text(text.translate(_TYPESET))


def is_latin(text: str) -> bool:
    """Whether every letter is one of the Latin script: an encoder that was taught English can read it."""
    return text.isascii() or all("LATIN" in unicodedata.name(char, "") for char in text if char.isalpha())


def accept_rewrite(text: str, rule: Acceptance = PAPER_RULE) -> bool:
    """True when a language model's words may be used. The caller bounds the attempts."""
    return (text.isascii() or not rule.ascii) and rule.min_words <= len(text.split()) <= rule.max_words
