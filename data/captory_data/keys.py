"""Source keys: safe to print, one for each name, in order, and on disk when there are many."""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Iterator

from captory_data.errors import ItemError, Reason

# Control characters, lone surrogates (bytes that are not UTF-8), line and direction marks; and the escape itself.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069\\]")
MAX_KEY_CHARACTERS = 4096
PAGE_ROWS = 512


def safe_key(name: str) -> str:
    """The name with every unsafe character spelled out. Different names stay different."""
    return UNSAFE.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", name)


def relative_path(name: str) -> str:
    """A name that stays below its root, in normal form.

    Raises:
        ItemError: it is absolute, climbs out, is empty, or is too long.
    """
    if name.startswith("/") or ".." in name.split("/") or "\x00" in name:
        raise ItemError(Reason.BAD_KEY, "the name leaves the input")
    path = posixpath.normpath(name) if name else "."
    if path == "." or len(path) > MAX_KEY_CHARACTERS:
        raise ItemError(Reason.BAD_KEY, "the name is empty or too long")
    return path


class KeyIndex:
    """Unique keys in order, each with a small text. SQLite moves it to a private temporary file as it grows."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA cache_size=-8192")  # KiB: the memory that it may take
        self._db.execute("CREATE TABLE entry (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, key: str, value: str) -> bool:
        """Keep the value unless the key is taken; say whether it was kept."""
        added = self._db.execute("INSERT OR IGNORE INTO entry VALUES (?, ?)", (key, value)).rowcount == 1
        self._length += added
        return added

    def __getitem__(self, key: str) -> str:
        """The text of a key. Raises `KeyError`."""
        row = self._db.execute("SELECT value FROM entry WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return str(row[0])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        last = ""
        query = "SELECT key, value FROM entry WHERE key > ? ORDER BY key LIMIT ?"
        while page := self._db.execute(query, (last, PAGE_ROWS)).fetchall():
            yield from page
            last = page[-1][0]

    def close(self) -> None:
        """Give the temporary file back."""
        self._db.close()
