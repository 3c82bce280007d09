"""One thing found in an input: where its content lies, or why it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captory_data.errors import ItemError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_FILE_BYTES = 64 << 20
MAX_TEXT_BYTES = 64 << 10


class Entry(NamedTuple):
    """Content by place: `path` below the input's root, and `offset` and `size` where it lies inside an archive."""

    class_id: str | None = None
    class_name: str | None = None
    caption: str | None = None
    prompt: str | None = None
    path: str | None = None
    offset: int = 0
    size: int | None = None
    reason: str | None = None
    message: str = ""
    attributes: Sequence[str] = ()

    @classmethod
    def broken(cls, error: ItemError) -> Entry:
        """An entry that only says why it cannot be used."""
        return cls(reason=error.reason, message=error.message)

    def dumps(self) -> str:
        """As text for the index."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Entry:
        """From the index."""
        return cls(*json.loads(text))


# A scan yields raw names with what was found; None is a file that is no item (it is counted).
Scan = Iterator[tuple[str, Entry | None]]
