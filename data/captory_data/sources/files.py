"""Reading files of an input: inside its root, regular, of bounded size, never by following a link out."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from captory_data.errors import ItemError, Reason
from captory_data.sources.entry import MAX_FILE_BYTES


def read_span(root: Path, path: str, offset: int = 0, size: int | None = None) -> bytes:
    """A file below `root` (a resolved path), whole or `size` bytes from `offset`.

    Raises:
        ItemError: it leaves the root, is no regular file, is empty, too large, cut short, or cannot be read.
    """
    resolved = Path(os.path.realpath(root / path))
    if not resolved.is_relative_to(root):
        raise ItemError(Reason.OUTSIDE_INPUT, "the link leaves the input")
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        with open(resolved, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            info = os.fstat(file.fileno())
            wanted = _checked_size(info, size)
            file.seek(offset)
            data = file.read(wanted)
    except OSError as error:
        raise ItemError(Reason.UNREADABLE, error.strerror or "it cannot be read") from error
    if len(data) != wanted:
        raise ItemError(Reason.UNREADABLE, f"it ends after {len(data)} of {wanted} bytes")
    return data


def _checked_size(info: os.stat_result, size: int | None) -> int:
    if not stat.S_ISREG(info.st_mode):
        raise ItemError(Reason.UNREADABLE, "it is not a regular file")
    wanted = info.st_size if size is None else size
    if wanted == 0:
        raise ItemError(Reason.EMPTY_FILE, "it has zero bytes")
    if wanted > MAX_FILE_BYTES:
        raise ItemError(Reason.TOO_LARGE, f"it has {wanted} bytes; the limit is {MAX_FILE_BYTES}")
    return wanted
