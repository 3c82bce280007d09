"""What a child process says: copied from a pipe into a file of bounded size, its last words kept.

By a thread: a child that is not read stands still, and the event loop may be busy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_LOG_BYTES = 8 << 20
MAX_LINE_BYTES = 64 << 10
LAST_WORDS_BYTES = 4000
END_TIMEOUT_S = 1.0


class ChildLog:
    """Into `path` and, when that has `MAX_LOG_BYTES`, into a new one: the one before is `path` with `.1` behind it.

    Without a path only the last words are kept. For one child at a time.
    """

    def __init__(self, path: Path | None, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._file = _File(path, maxBytes=max_bytes, backupCount=1, encoding="utf-8") if path else None
        self._last = b""
        self._copying: threading.Thread | None = None

    @contextmanager
    def pipe(self) -> Iterator[int]:
        """What the next child is to write to; after this block only the child holds it."""
        reading, writing = os.pipe()
        self._last = b""
        self._copying = threading.Thread(target=self._copy, args=(reading,), name="captory-vllm-log", daemon=True)
        self._copying.start()
        try:
            yield writing
        finally:
            os.close(writing)

    async def last_words(self) -> str:
        """The end of what a child that has ended said, in printable lines."""
        await self._finish()
        lines = self._last.decode(errors="replace").strip().splitlines()
        return "\n".join(_printable(line) for line in lines)

    async def close(self) -> None:
        """Close the file, when the child has ended."""
        await self._finish()
        if self._file is not None:
            with suppress(OSError):  # a disk that is full
                self._file.close()

    async def _finish(self) -> None:
        """Wait until all is read; not for ever, since what has left the child's group may hold the pipe."""
        if self._copying is not None:
            await asyncio.to_thread(self._copying.join, END_TIMEOUT_S)

    def _copy(self, reading: int) -> None:
        with os.fdopen(reading, "rb") as pipe:
            while line := pipe.readline(MAX_LINE_BYTES):
                self._last = (self._last + line)[-LAST_WORDS_BYTES:]
                if self._file is not None:
                    words = line.decode(errors="replace").rstrip("\n")
                    self._file.handle(logging.makeLogRecord({"msg": words}))


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk costs the line: whoever reads on keeps the child from standing still."""


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
