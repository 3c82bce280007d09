"""`report.html`: a contact sheet of the dataset in one self-contained file. All text in it is untrusted and escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from captory_data.dataset import open_ledger
from captory_data.durable import atomic_file
from captory_data.errors import LedgerError
from captory_data.formats.base import Format, Layout
from captory_data.formats.registry import open_format
from captory_data.identity import identify, image_indices
from captory_data.ledger import Ledger
from captory_data.records import Record
from captory_data.rows import GalleryRow, ImageRow, Shard, StoredJob
from captory_data.spec import JobSpec
from captory_data.thumbnails import thumbnail

REPORT_NAME = "report.html"
MAX_IMAGES = 480
MAX_IMAGES_PER_SOURCE = 8
MAX_FAILURES = 100
MAX_INLINE_BYTES = 32 << 10  # larger images are shown as thumbnails
IMAGE_SIDE_PX = 256


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One image of the sheet."""

    record: Record
    uri: str


@dataclass(frozen=True, slots=True)
class ShownSource:
    """One source with its images; `hidden` more are not shown."""

    key: str
    uri: str | None
    images: Sequence[ShownImage]
    hidden: int

    @property
    def caption(self) -> str:
        """What the captioner said."""
        return self.images[0].record.caption if self.images else ""

    @property
    def caption_source(self) -> str:
        """The key of the source whose picture and caption these are, where it is another's."""
        return self.images[0].record.caption_source if self.images else ""

    @property
    def synthetic_captions(self) -> list[str]:
        """What the captioner said of a closed loop's drafts, in order."""
        return list(dict.fromkeys(words for image in self.images for words in image.record.synthetic_captions))

    @property
    def prompts(self) -> list[str]:
        """The different prompts, in order."""
        return list(dict.fromkeys(image.record.prompt for image in self.images))


@dataclass(slots=True)
class ShownClass:
    """One class of the sheet."""

    id: str
    name: str
    num_images: int
    sources: list[ShownSource] = field(default_factory=list)


def write_report(out: Path, ledger: Ledger) -> None:
    """Write the report of what the ledger holds. Memory is bounded by what is shown."""
    job = ledger.job()
    if job is None:
        raise LedgerError(f"{ledger.path} holds no job")
    environment = Environment(
        loader=PackageLoader("captory_data", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    parts = environment.get_template("report.html.j2").generate(**_view(out, ledger, job))
    with atomic_file(out / REPORT_NAME) as file:
        for part in parts:
            file.write(part.encode())


def write_report_for(out: Path) -> None:
    """Write an output folder's report anew."""
    with open_ledger(out) as ledger:
        write_report(out, ledger)


def _view(out: Path, ledger: Ledger, job: StoredJob) -> dict[str, Any]:
    runs = ledger.runs()
    num_images, seconds = sum(run.images for run in runs), sum(run.seconds for run in runs)
    classes = _classes(out, ledger, job)
    return {
        "job": job,
        "counts": ledger.counts(),
        "classes": classes,
        "num_classes": len(ledger.classes()),
        "num_shown": sum(len(source.images) for shown in classes for source in shown.sources),
        "images_per_s": num_images / seconds if seconds else None,
        "seconds": seconds,
        "stages": _stage_means(run.stages for run in runs),
        "reasons": ledger.failures_by_reason(),
        "failures": ledger.failures(MAX_FAILURES),
    }


def _stage_means(runs: Iterable[dict[str, list[float]]]) -> list[tuple[str, float]]:
    """Mean seconds from an item's arrival to the end of each stage, the earliest first."""
    totals: dict[str, tuple[float, float]] = {}
    for stages in runs:
        for name, (items, seconds) in stages.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + items, before[1] + seconds
    means = [(name, seconds / items) for name, (items, seconds) in totals.items() if items]
    return sorted(means, key=lambda mean: mean[1])


def _classes(out: Path, ledger: Ledger, job: StoredJob) -> list[ShownClass]:
    names = {row.position: (row.id, row.name) for row in ledger.classes()}
    shown = {
        position: ShownClass(*names.get(position, ("", "")), num_images)
        for position, num_images in sorted(ledger.counts_by_class().items())
    }
    gallery = ledger.gallery()
    per_source = max(1, min(MAX_IMAGES_PER_SOURCE, MAX_IMAGES // max(1, len(gallery)), job.spec.per_image))
    reader = open_format(job.spec.output_format, Layout(out, job.spec.image_format, ledger.classes()))
    found = _images(reader, ledger, [image for row in gallery for image in _ids(job.spec, row.source, per_source)])
    for row in gallery:
        images = [found[image] for image in _ids(job.spec, row.source, per_source) if image in found]
        if images and row.class_position in shown:
            states = ledger.states(_ids(job.spec, row.source, job.spec.per_image))
            hidden = sum(state.published for state in states.values()) - len(images)
            shown[row.class_position].sources.append(ShownSource(row.source, _thumbnail_uri(row), images, hidden))
    return list(shown.values())


def _ids(spec: JobSpec, source: str, count: int) -> list[str]:
    return [identify(spec, source, *image_indices(spec.mode, k)).id for k in range(count)]


def _images(reader: Format, ledger: Ledger, ids: Sequence[str]) -> dict[str, ShownImage]:
    """The images that are published, each shard read once."""
    by_shard: dict[Shard, list[ImageRow]] = {}
    for image_id in ids:
        if (found := ledger.image(image_id)) is not None:
            by_shard.setdefault(found.shard, []).append(found.row)
    shown: dict[str, ShownImage] = {}
    for shard, rows in by_shard.items():
        shown |= _shown(reader, shard, rows)
    return shown


def _shown(reader: Format, shard: Shard, rows: Sequence[ImageRow]) -> dict[str, ShownImage]:
    records = {row.id: Record.loads(row.record) for row in rows}
    try:
        return {
            stored.id: ShownImage(records[stored.id], _uri(stored.image))
            for stored in reader.read(shard, rows)
            if stored.id in records
        }
    except (OSError, ValueError):  # a damaged shard is `verify`'s to report; the sheet shows the rest
        return {}


def _thumbnail_uri(row: GalleryRow) -> str | None:
    return None if row.thumbnail is None else _data_uri("image/jpeg", row.thumbnail)


def _uri(image: bytes) -> str:
    if len(image) > MAX_INLINE_BYTES and (small := thumbnail(image, IMAGE_SIDE_PX)) is not None:
        return _data_uri("image/jpeg", small)
    return _data_uri("image/png" if image.startswith(b"\x89PNG") else "image/webp", image)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
