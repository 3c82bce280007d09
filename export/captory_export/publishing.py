"""A repository that appears as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from captory_engine.errors import BadModel


@contextmanager
def published(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends; when it raises, all is as it was.

    Raises `BadModel` when there is something at `out` already, or no room for about `num_bytes`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadModel("OUT_TAKEN", f"There already is something at {str(out)!r}; name a new folder.")
    with _parents(out):
        free = shutil.disk_usage(out.parent).free
        if free < num_bytes:
            words = f"about {num_bytes / 1e9:.1f} GB are needed at {str(out.parent)!r}, {free / 1e9:.1f} GB are free"
            raise BadModel("DISK_FULL", f"Not enough room: {words}.")
        staging = Path(tempfile.mkdtemp(prefix=".exporting-", dir=out.parent))
        try:
            yield staging
            _take_place(staging, out)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            words = f"There is no more room at {str(out.parent)!r}; nothing was written."
            raise BadModel("DISK_FULL", words) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _parents(out: Path) -> Iterator[None]:
    """The folders above `out` are there; those that were made for it go again when the block raises."""
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # someone else has put something there
                folder.rmdir()
        raise


def _take_place(staging: Path, out: Path) -> None:
    _sync(staging)
    staging.chmod(0o755)
    if out.exists():
        out.rmdir()
    staging.rename(out)
    _sync_folder(out.parent)


def _sync(root: Path) -> None:
    """To the disk, before the name says that it is there."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(root)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
