"""Whose caption an item gets in the control arms: that of another item of its class, or of an item of another class.

The items of a class that bring an image or a caption stand in a ring, in the order of a hash of the job's seed and
their keys; the partner is the next one from the item's own place. So it depends on the seed and the input alone, and in
the arm `shuffled` each item of a ring lends to one other of it. An item with a prompt borrows, and lends nothing.
"""

from __future__ import annotations

import hashlib
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain

from captory_data.errors import ItemError, Reason
from captory_data.planning import Planned
from captory_data.source import Source, SourceItem
from captory_data.spec import JobSpec

SAME_CLASS, OTHER_CLASS = "shuffled", "cross-class"
NO_CLASS = ""
_RING = "CREATE TABLE ring (class TEXT, point TEXT, key TEXT, PRIMARY KEY (class, point, key)) WITHOUT ROWID"
_NEXT = "SELECT key FROM ring WHERE class = ? AND (point, key) > (?, ?) ORDER BY point, key LIMIT 1"


def with_partners(
    planned: Iterator[Planned], source: Source, spec: JobSpec, agree: Callable[[str], None], stopped: Callable[[], bool]
) -> Iterator[Planned]:
    """The plan, with a partner for each item that is to be made; in a mode without partners, the plan as it is.

    The rings are made for the first of these items, and `agree` is given their sha256: what it raises ends the plan.
    Once `stopped`, no item that is still given may be used.
    """
    for one in planned:
        if one.wanted and spec.mode in (SAME_CLASS, OTHER_CLASS):
            yield from _paired(chain([one], planned), source, spec, agree, stopped)
        else:
            yield one


def _paired(
    planned: Iterator[Planned], source: Source, spec: JobSpec, agree: Callable[[str], None], stopped: Callable[[], bool]
) -> Iterator[Planned]:
    with closing(Partners(source, spec.seed, other_class=spec.mode == OTHER_CLASS, stopped=stopped)) as partners:
        if not stopped():  # else the rings may be cut short
            agree(partners.sha256)
        for one in planned:
            yield replace(one, item=partners.paired(one.item)) if one.wanted else one


class Partners:
    """The rings of one source, in a private temporary file as they grow. For one caller at a time.

    `sha256` is that of the classes and keys of all who lend, in order of key.
    """

    def __init__(
        self, source: Source, seed: int, *, other_class: bool, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._source = source
        self._seed = seed
        self._other_class = other_class
        self._stopped = stopped
        self._digest = hashlib.sha256()
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA cache_size=-8192")  # KiB: the memory that it may take
        self._db.execute(_RING)
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO ring VALUES (?, ?, ?)", self._places())
        self._db.execute("COMMIT")
        classes = self._db.execute("SELECT DISTINCT class FROM ring WHERE class != ? ORDER BY class", (NO_CLASS,))
        self._classes = [str(name) for (name,) in classes]
        self.sha256 = self._digest.hexdigest()

    def paired(self, item: SourceItem) -> SourceItem:
        """The item with its partner, or with the reason why it has none."""
        if item.entry.reason is not None:
            return item
        point = self._point(item.key)
        lender = self._other(item, point) if self._other_class else item.class_id or NO_CLASS
        key = None if lender is None else self._next(lender, point, item.key)
        if key is None:
            which = "item of another class" if self._other_class else "other item of its class"
            return item.broken(ItemError(Reason.NO_PARTNER, f"there is no {which} whose caption it could have"))
        return replace(item, partner=self._source[key])

    def close(self) -> None:
        """Give the temporary file back."""
        self._db.close()

    def _places(self) -> Iterator[tuple[str, str, str]]:
        for item in self._source:
            if self._stopped():
                return
            if item.can_lend:
                class_id = item.class_id or NO_CLASS
                self._digest.update(f"{class_id}\n{item.key}\n".encode())
                yield class_id, self._point(item.key), item.key

    def _point(self, key: str) -> str:
        """An item's place on its ring."""
        return hashlib.sha256(f"{self._seed}:{key}".encode()).hexdigest()

    def _other(self, item: SourceItem, point: str) -> str | None:
        """The class that lends: one of the others, each as likely."""
        own = item.class_id
        if own is None:
            return None
        place = bisect_left(self._classes, own)
        known = place < len(self._classes) and self._classes[place] == own
        num_others = len(self._classes) - known
        if num_others == 0:
            return None
        chosen = int(point, 16) % num_others
        return self._classes[chosen + (known and chosen >= place)]

    def _next(self, lender: str, point: str, key: str) -> str | None:
        """The next key on the ring of class `lender`, past the end its first; None where there is no other."""
        found = self._db.execute(_NEXT, (lender, point, key)).fetchone()
        found = found or self._db.execute(_NEXT, (lender, "", "")).fetchone()
        return None if found is None or found[0] == key else str(found[0])
