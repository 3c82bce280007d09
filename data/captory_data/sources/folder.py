"""Folders of images: flat (no class), or one folder a class (the first folder on the path names it)."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from captory_data.errors import ItemError, Reason
from captory_data.sources.entry import IMAGE_SUFFIXES, Entry, Scan


def is_image(name: str) -> bool:
    """Whether the name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def scan_folder(root: Path, exclude: Path | None = None) -> Scan:
    """Every image below `root`; hidden names are passed over, and so is the folder `exclude`.

    Raises:
        OSError: `root` itself cannot be listed; a folder below it that cannot is a broken entry.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                listing = list(entries)
        except OSError as error:
            if not folder:
                raise
            yield folder, Entry.broken(ItemError(Reason.UNREADABLE, error.strerror or "the folder cannot be read"))
            continue
        for entry in listing:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or root / path == exclude:
                yield path, None
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield path, _file(root, path, entry)


def _file(root: Path, path: str, entry: os.DirEntry[str]) -> Entry | None:
    if entry.is_symlink() and entry.is_dir():
        inside = Path(os.path.realpath(entry.path)).is_relative_to(root)
        return None if inside else Entry.broken(ItemError(Reason.OUTSIDE_INPUT, "the linked folder leaves the input"))
    if not is_image(entry.name):
        return None
    first, _, rest = path.partition("/")
    return Entry(class_id=first if rest else None, path=path)
