"""What the ledger keeps, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from captory_data.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Shard:
    """One published file (or batch of files)."""

    name: str
    sha256: str
    count: int


class ClassRow(NamedTuple):
    """One class: its position is the label in the dataset, for ever."""

    position: int
    id: str
    name: str


class ImageRow(NamedTuple):
    """One published image; `record` is JSON, `class_position` -1 without a class."""

    id: str
    source: str
    class_position: int
    sha256: str
    record: str


class FailureRow(NamedTuple):
    """One image that did not come."""

    id: str
    source: str
    prompt_index: int
    sample_index: int
    reason: str
    message: str
    dropped: bool


class GalleryRow(NamedTuple):
    """One source that the report shows."""

    source: str
    class_position: int
    thumbnail: bytes | None


class PublishedImage(NamedTuple):
    """One published image and where it lies."""

    row: ImageRow
    shard: Shard


class RunRow(NamedTuple):
    """One run's figures; `stages` maps a stage to its items and their seconds in all."""

    started: str
    seconds: float
    images: int
    stages: dict[str, list[float]]


class State(NamedTuple):
    """Where an id stands: published, or failed (then with a reason), or dropped by policy."""

    published: bool
    reason: str = ""
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class StoredJob:
    """The job that a folder was made with; `models` is None before the first result."""

    spec: JobSpec
    models: Mapping[str, str] | None
    backend: str
    notice: str
    versions: Mapping[str, str]
    created: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Images published, failed and dropped."""

    images: int
    failed: int
    dropped: int
