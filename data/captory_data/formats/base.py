"""What every output format does: write a batch of samples for good, read it back, tidy up after a killed run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from captory_data.ledger import Ledger
from captory_data.records import Record
from captory_data.rows import ClassRow, ImageRow, Shard

NO_CLASS = -1


@dataclass(frozen=True)
class Sample:
    """One finished image on its way to disk. `class_position` is NO_CLASS without a class."""

    record: Record
    image: bytes
    class_position: int = NO_CLASS

    @cached_property
    def row(self) -> ImageRow:
        """As the ledger keeps it."""
        digest = hashlib.sha256(self.image).hexdigest()
        return ImageRow(self.record.id, self.record.source, self.class_position, digest, self.record.dumps())


class Stored(NamedTuple):
    """One sample read back; `record` is JSON. `prompt` and `label` only where the format keeps them apart."""

    id: str
    image: bytes
    record: str
    prompt: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a dataset lies and what it is made of."""

    out: Path
    suffix: str  # of image files: png or webp
    classes: Sequence[ClassRow]


class Format(Protocol):
    """One output format. A batch that `write` returned is on disk; whether it counts is the ledger's to say."""

    folder: Path

    def write(self, number: int, samples: Sequence[Sample]) -> Shard:
        """Write the batch durably, under its final name."""
        ...

    def clean(self, ledger: Ledger) -> None:
        """Remove what a killed run left and the ledger never acknowledged; nothing that is not ours."""
        ...

    def listing(self, ledger: Ledger, *, final: bool) -> list[Shard]:
        """The files that make up the dataset, for the manifest."""
        ...

    def path(self, shard: Shard) -> Path | None:
        """The file whose sha256 the shard gives, if it is one file."""
        ...

    def read(self, shard: Shard, rows: Sequence[ImageRow]) -> Iterator[Stored]:
        """The samples of a batch, or of those of its rows that are given, one after the other.

        Raises:
            OSError, ValueError: the file is missing or damaged.
        """
        ...

    def strays(self, ledger: Ledger) -> Iterator[Path]:
        """Files of the format's folder that the ledger does not know."""
        ...
