"""Checking a dataset against its manifest and ledger: every file, every sample, nothing missing, nothing beside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from captory_data.dataset import open_ledger
from captory_data.durable import file_sha256
from captory_data.errors import FatalStorageError, LedgerError
from captory_data.formats.base import NO_CLASS, Format, Layout, Stored
from captory_data.formats.registry import open_format
from captory_data.ledger import Ledger
from captory_data.lock import locked
from captory_data.manifest import MANIFEST_NAME, build_manifest, read_manifest
from captory_data.records import Record
from captory_data.rows import ImageRow, Shard, StoredJob


class Problem(NamedTuple):
    """Something that is not as it should be, and the file it is in."""

    path: Path
    message: str


@dataclass(slots=True)
class VerifyReport:
    """What was checked, and what is wrong."""

    shards: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(out: Path) -> VerifyReport:
    """Check an output folder whole. Memory is bounded by one shard.

    Raises:
        LedgerError: the ledger is missing or damaged (the message names it).
        LockedError: a run is going on.
    """
    report = VerifyReport()
    with ExitStack() as stack:
        with suppress(FatalStorageError):  # read-only: then nobody writes
            stack.enter_context(locked(out))
        ledger = stack.enter_context(open_ledger(out))
        job = ledger.job()
        if job is None:
            raise LedgerError(f"{ledger.path} holds no job")
        reader = open_format(job.spec.output_format, Layout(out, job.spec.image_format, ledger.classes()))
        for number, shard in ledger.shards():
            report.shards += 1
            report.images += shard.count
            report.problems += _check_shard(reader, shard, ledger.images_of(number))
        report.problems += _check_manifest(out, reader, ledger, job)
        report.problems += [Problem(path, "is not part of the dataset") for path in reader.strays(ledger)]
        report.problems = list(dict.fromkeys(report.problems))  # ledger and manifest list the same files
    return report


def _check_manifest(out: Path, reader: Format, ledger: Ledger, job: StoredJob) -> Iterator[Problem]:
    path = out / MANIFEST_NAME
    try:
        manifest = read_manifest(out)
        listed = [Shard(str(row["name"]), str(row["sha256"]), int(row["count"])) for row in manifest["shards"]]
    except (LedgerError, KeyError, TypeError, ValueError) as error:
        yield Problem(path, f"cannot be read: {error}")
        return
    expected = build_manifest(ledger, job, listed)
    for name in expected.keys() - {"versions"}:
        if manifest.get(name) != expected[name]:
            yield Problem(path, f"{name} is not what the ledger says")
    if sum(shard.count for shard in listed) != ledger.counts().images:
        yield Problem(path, "the shards do not add up to the ledger's images")
    for shard in listed:
        file = reader.path(shard)
        if file is None or Path(shard.name).name != shard.name:
            yield Problem(path, f"lists {shard.name!r}, which is no file of the dataset")
        elif (damage := _damage(file, shard.sha256)) is not None:
            yield Problem(file, damage)


def _damage(path: Path, sha256: str) -> str | None:
    try:
        return None if file_sha256(path) == sha256 else "its sha256 is not the one written down"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _check_shard(reader: Format, shard: Shard, rows: Sequence[ImageRow]) -> Iterator[Problem]:
    path = reader.path(shard)
    place = path or reader.folder
    if path is not None and (damage := _damage(path, shard.sha256)) is not None:
        yield Problem(path, damage)
    expected = {row.id: row for row in rows}
    if len(expected) != shard.count:
        yield Problem(place, f"the ledger counts {shard.count} images in {shard.name} and lists {len(expected)}")
    try:
        for stored in reader.read(shard, rows):
            row = expected.pop(stored.id, None)
            message = "is here twice, or is not in the ledger" if row is None else _difference(stored, row)
            if message is not None:
                yield Problem(place, f"image {stored.id} {message}")
    except (OSError, ValueError) as error:
        yield Problem(place, f"{shard.name} cannot be read: {error}")
        return
    for image_id in expected:
        yield Problem(place, f"image {image_id} is missing")


def _difference(stored: Stored, row: ImageRow) -> str | None:
    """What is wrong with one sample, if anything."""
    if hashlib.sha256(stored.image).hexdigest() != row.sha256:
        return "has other bytes than the ledger says"
    try:
        record = Record.loads(stored.record)
    except (ValueError, TypeError) as error:
        return f"has an unreadable record: {error}"
    if stored.record != row.record or (record.id, record.source) != (row.id, row.source):
        return "has another record than the ledger"
    if stored.prompt is not None and stored.prompt != record.prompt:
        return "has another prompt than its record"
    return _label_difference(stored, row, record)


def _label_difference(stored: Stored, row: ImageRow, record: Record) -> str | None:
    if (row.class_position == NO_CLASS) != (record.class_id is None):
        return "has a class in the ledger or in its record, but not in both"
    if stored.label is not None and stored.label != str(row.class_position):
        return "has another class than the ledger says"
    return None
