"""One process at a time works on an output folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captory_data.durable import storage_errors
from captory_data.errors import LockedError

LOCK_NAME = ".captory.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back when the process ends, however it ends.

    Raises:
        LockedError: another process holds it, named by its id.
    """
    path = out / LOCK_NAME
    with storage_errors(path):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(f"{out} is in use by process {file.read(20).strip() or 'unknown'}") from error
        with storage_errors(path):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield
