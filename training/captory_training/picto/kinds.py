"""The object kinds of the world: thirteen kinds under nine class names, four of them with two looks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One drawable kind; `class_name` is the ambiguous label, `singular` and `plural` the exact words."""

    key: str
    class_name: str
    singular: str
    plural: str


def _kind(words: str) -> Kind:
    return Kind(key=words.replace(" ", "_"), class_name=words.split()[0], singular=words, plural=f"{words}s")


KINDS: tuple[Kind, ...] = (
    _kind("crane bird"),
    _kind("crane machine"),
    _kind("bat animal"),
    _kind("bat club"),
    _kind("mouse animal"),
    _kind("mouse device"),
    Kind("bass_fish", "bass", "bass fish", "bass fishes"),
    _kind("bass guitar"),
    _kind("face"),
    _kind("house"),
    _kind("tree"),
    _kind("boat"),
    _kind("mug"),
)
KIND_BY_KEY: dict[str, Kind] = {kind.key: kind for kind in KINDS}
CLASS_NAMES: tuple[str, ...] = tuple(dict.fromkeys(kind.class_name for kind in KINDS))
