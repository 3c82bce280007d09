"""Reads a caption back into facts by its exact wording, to score captioners."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from captory_training.picto.kinds import KINDS
from captory_training.picto.scene import COLOURS, SIZES
from captory_training.picto.words import AGE_WORDS, BACKGROUND_PHRASES, NUMBER_WORDS, POSITION_PHRASES


@dataclass(frozen=True)
class CaptionReading:
    """What a caption says of the scene's first group; None where it does not say."""

    kind: str | None
    colour: str | None
    count: int | None
    position: str | None
    background: str | None


def read_caption(text: str) -> CaptionReading:
    """Reads the first object that the text names, and the first position and background."""
    thing = _THING.search(text)
    position = _POSITION.search(text)
    background = _BACKGROUND.search(text)
    return CaptionReading(
        kind=_KIND_KEYS[thing["noun"]] if thing else None,
        colour=thing["colour"] or thing["clothing"] if thing else None,
        count=_COUNTS.get(thing["number"] or "") if thing else None,
        position=_POSITIONS[position.group()] if position else None,
        background=_BACKGROUNDS[background.group()] if background else None,
    )


def _any_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


_KIND_KEYS = {noun: kind.key for kind in KINDS for noun in (kind.singular, kind.plural)}
_COUNTS = {"a": 1, "an": 1, **{word: count for count, word in NUMBER_WORDS.items()}}
_POSITIONS = {phrase: name for name, phrases in POSITION_PHRASES.items() for phrase in phrases}
_BACKGROUNDS = {phrase: name for name, phrases in BACKGROUND_PHRASES.items() for phrase in phrases}

_POSITION = re.compile(rf"\b{_any_of(_POSITIONS)}\b")
_BACKGROUND = re.compile(rf"\b{_any_of(_BACKGROUNDS)}\b")
_THING = re.compile(
    rf"\b(?:(?P<number>{_any_of(_COUNTS)}) )?"
    rf"(?:{_any_of((*SIZES, *AGE_WORDS.values()))} )*"
    rf"(?:(?P<colour>{_any_of(COLOURS)}) )?"
    rf"(?P<noun>{_any_of(_KIND_KEYS)})\b"
    rf"(?: in (?P<clothing>{_any_of(COLOURS)})\b)?"
)
