"""Which sources the report shows: the first few of each class, a bounded number in all."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from captory_data.source import Payload
from captory_data.thumbnails import thumbnail

MAX_SOURCES = 240
MAX_SOURCES_PER_CLASS = 12


class Gallery:
    """Counts the places; asked from several reading threads."""

    def __init__(self, num_classes: int, taken: Iterable[str | None]) -> None:
        self._per_class = max(1, min(MAX_SOURCES_PER_CLASS, MAX_SOURCES // max(1, num_classes)))
        self._taken = Counter(taken)
        self._lock = threading.Lock()

    def picture(self, class_id: str | None, payload: Payload) -> tuple[bool, bytes | None]:
        """Whether the report shows this source, and its thumbnail (None for a source of words)."""
        if not self._take(class_id):
            return False, None
        if payload.image is None:
            return True, None
        small = thumbnail(payload.image)
        if small is None:
            self._give_back(class_id)
        return small is not None, small

    def _take(self, class_id: str | None) -> bool:
        with self._lock:
            if self._taken[class_id] >= self._per_class or self._taken.total() >= MAX_SOURCES:
                return False
            self._taken[class_id] += 1
            return True

    def _give_back(self, class_id: str | None) -> None:
        with self._lock:
            self._taken[class_id] -= 1
