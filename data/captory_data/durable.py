"""Files that are wholly there or not at all, and on disk once said to be: write, flush, rename, flush the folder.

Any refusal of the disk ends the run (errors.FatalStorageError): after a failed flush nobody knows what it holds.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from captory_data.errors import FatalStorageError

TMP_SUFFIX = ".tmp"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals into a FatalStorageError that says which file, and what to do."""
    try:
        yield
    except OSError as error:
        raise FatalStorageError(f"cannot write {path}: {advice(error)}") from error


def advice(error: OSError) -> str:
    """The system's words, and what helps."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}. Free some space, then run the same command again: it continues."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}. Make the output folder writable, then run the same command again."
    return f"{error.strerror or error}. Check the disk, then run the same command again: it continues."


@contextmanager
def atomic_file(path: Path, *, flush_name: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes its place (and is flushed) at the end of the block; on an error, nothing is left.

    Without `flush_name` its name is durable only after `flush_folder`: one flush then serves many files.
    """
    tmp = path.with_name(path.name + TMP_SUFFIX)
    with storage_errors(path):
        try:
            with open(tmp, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(tmp, path)
        except Exception:
            tmp.unlink(missing_ok=True)
            raise
        if flush_name:
            flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create the folder, durably, unless it exists."""
    with storage_errors(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            flush_folder(folder.parent)


def file_sha256(path: Path) -> str:
    """The file's digest, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
