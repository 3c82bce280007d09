"""What a finished checkpoint's folder is sealed with: the torch backend loads weights only by their digests."""

from __future__ import annotations

from pathlib import Path

from captory_data.durable import file_sha256

MANIFEST = "manifest.sha256"


def seal(folder: Path) -> None:
    """Record the sha256 of every file of the folder as it is now, as `sha256sum` does."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
