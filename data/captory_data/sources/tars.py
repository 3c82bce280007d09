"""WebDataset tars: members that share a name up to its first dot are one sample; content is read later, by place."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from captory_data.errors import ItemError, Reason
from captory_data.keys import relative_path
from captory_data.sources.columns import bounded, described
from captory_data.sources.entry import IMAGE_SUFFIXES, Entry, Scan

MAX_MEMBER_TEXT_BYTES = 1 << 20
TEXT_SUFFIXES = ("cls", "txt", "json")


@dataclass(frozen=True, slots=True)
class _Member:
    base: str
    suffix: str  # after the first dot, lower case
    info: tarfile.TarInfo
    text: bytes = field(default=b"", repr=False)


def scan_tars(root: Path, names: list[str]) -> Scan:
    """Every sample of the tars `names` in `root`. A tar that ends too early gives its samples, then one failure."""
    for name in sorted(names):
        try:
            for base, members in groupby(_members(root / name), key=lambda member: member.base):
                yield f"{name}/{base}", _sample(name, base, list(members))
        except (tarfile.TarError, OSError, EOFError) as error:
            yield name, Entry.broken(ItemError(Reason.CORRUPT_ARCHIVE, f"the archive cannot be read on: {error}"))


def _members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if info.isdir():
                continue
            folder, slash, name = info.name.removeprefix("./").rpartition("/")
            stem, _, suffix = name.partition(".")
            suffix = suffix.lower()
            yield _Member(f"{folder}{slash}{stem}", suffix, info, _text(tar, info, suffix))


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str) -> bytes:
    if suffix not in TEXT_SUFFIXES or not info.isreg() or info.size > MAX_MEMBER_TEXT_BYTES:
        return b""
    file = tar.extractfile(info)
    return file.read() if file else b""


def _sample(tar_name: str, base: str, members: list[_Member]) -> Entry | None:
    try:
        relative_path(base)
        if len({member.suffix for member in members}) < len(members):
            raise ItemError(Reason.DUPLICATE_KEY, "the sample holds two members of one kind")
        entry = _described({member.suffix: member for member in members})
        image = min((member for member in members if f".{member.suffix}" in IMAGE_SUFFIXES), key=_suffix, default=None)
        if image is None:
            return _without_image(entry)
        if not image.info.isreg():
            raise ItemError(Reason.OUTSIDE_INPUT, "the image is a link or a device")
        return entry._replace(path=tar_name, offset=image.info.offset_data, size=image.info.size)
    except ItemError as error:
        return Entry.broken(error)


def _without_image(entry: Entry) -> Entry | None:
    """A sample without an image: its words, if it has any."""
    if entry.caption or entry.prompt:
        return entry
    if entry.attributes:
        raise ItemError(Reason.BAD_METADATA, "there are attributes, but no image, caption or prompt beside them")
    return None


def _suffix(member: _Member) -> str:
    return member.suffix


def _described(members: dict[str, _Member]) -> Entry:
    """What the sample's JSON says, else its `.cls` and `.txt`."""
    entry = described(_json(members["json"].text)) if "json" in members else Entry()
    if "cls" in members:
        label = bounded(members["cls"].text.decode(errors="replace").strip())
        entry = entry._replace(class_id=entry.class_id or label or None)
    if "txt" in members:
        text = bounded(members["txt"].text.decode(errors="replace").strip())
        entry = entry._replace(caption=entry.caption or text or None)
    return entry


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ItemError(Reason.BAD_METADATA, "the sample's JSON cannot be read") from error
    if not isinstance(value, dict):
        raise ItemError(Reason.BAD_METADATA, "the sample's JSON is not an object")
    return value
