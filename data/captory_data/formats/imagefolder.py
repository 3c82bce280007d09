"""Image files in a folder a class, with `metadata.parquet`: read by `datasets` and by torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from captory_data.durable import TMP_SUFFIX, atomic_file, file_sha256, flush_folder, make_folder, storage_errors
from captory_data.formats.base import Layout, Sample, Stored
from captory_data.formats.table import columns_of, schema_for
from captory_data.ledger import Ledger
from captory_data.paging import pages
from captory_data.records import Record
from captory_data.rows import ImageRow, Shard

METADATA_NAME = "metadata.parquet"
NO_CLASS_FOLDER = "unlabelled"
MAX_FOLDER_BYTES = 120
RELIST_GROWTH = 1.1  # rewriting the listing at each batch would cost the square of the job's length
PAGE_FILES = 500


def folder_name(class_id: str | None) -> str:
    """The class id as one safe folder name; different ids keep different names."""
    if class_id is None:
        return NO_CLASS_FOLDER
    name = "".join(part if part.isalnum() else quote(part, safe=" ()+,=@") for part in class_id)
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name.encode()) > MAX_FOLDER_BYTES:
        name = f"%{hashlib.sha256(class_id.encode()).hexdigest()}"
    return name


class ImageFolderFormat:
    """`data/<class id>/<id>.png`; a batch is a set of files, and the listing of them all is one Parquet file."""

    def __init__(self, layout: Layout) -> None:
        self.folder = layout.out / "data"
        self._suffix = layout.suffix
        self._schema = schema_for(layout.classes, {"file_name": pa.string(), "sha256": pa.string()})
        self._listed = 0

    def _name(self, record: Record) -> str:
        return f"{folder_name(record.class_id)}/{record.id}.{self._suffix}"

    def write(self, number: int, samples: Sequence[Sample]) -> Shard:
        """Every image under its final name."""
        for folder in sorted({folder_name(sample.record.class_id) for sample in samples}):
            make_folder(self.folder / folder)
        for sample in samples:
            with atomic_file(self.folder / self._name(sample.record), flush_name=False) as file:
                file.write(sample.image)
        for folder in sorted({folder_name(sample.record.class_id) for sample in samples}):
            flush_folder(self.folder / folder)
        lines = sorted(f"{sample.row.sha256}  {self._name(sample.record)}\n" for sample in samples)
        return Shard(f"batch-{number:06d}", hashlib.sha256("".join(lines).encode()).hexdigest(), len(samples))

    def path(self, shard: Shard) -> Path | None:
        """Only the listing is one file; a batch is many."""
        return self.folder / shard.name if shard.name == METADATA_NAME else None

    def listing(self, ledger: Ledger, *, final: bool) -> list[Shard]:
        """The listing, written anew at the end and whenever the dataset grew by a tenth."""
        path = self.folder / METADATA_NAME
        count = ledger.counts().images
        if count == 0:
            return []
        if final or count >= self._listed * RELIST_GROWTH or not path.exists():
            self._write_listing(path, ledger)
            self._listed = count
        with storage_errors(path):
            return [Shard(METADATA_NAME, file_sha256(path), self._listed)]

    def _write_listing(self, path: Path, ledger: Ledger) -> None:
        with atomic_file(path) as file, pq.ParquetWriter(file, self._schema) as writer:
            for number, _ in ledger.shards():
                rows = [self._row(image) for image in ledger.images_of(number)]
                writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def _row(self, image: ImageRow) -> dict[str, object]:
        record = Record.loads(image.record)
        return {"file_name": self._name(record), "sha256": image.sha256, **columns_of(record, image.class_position)}

    def read(self, shard: Shard, rows: Sequence[ImageRow]) -> Iterator[Stored]:
        """The files of the rows."""
        for row in rows:
            image = (self.folder / self._name(Record.loads(row.record))).read_bytes()
            yield Stored(row.id, image, row.record)

    def clean(self, ledger: Ledger) -> None:
        """Remove half-written files, and images that were not published."""
        for path in self.strays(ledger):
            name = path.name.removesuffix(TMP_SUFFIX)
            ours = name == METADATA_NAME or (len(Path(name).stem) == 32 and name.endswith(f".{self._suffix}"))
            if ours:
                with storage_errors(path):
                    path.unlink()

    def strays(self, ledger: Ledger) -> Iterator[Path]:
        """Files beside the published ones."""
        for page in pages(self._files(), PAGE_FILES):
            states = ledger.states([path.stem for path in page])
            for path in page:
                known = path.suffix == f".{self._suffix}" and path.stem in states and states[path.stem].published
                if not known and path != self.folder / METADATA_NAME:
                    yield path

    def _files(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.folder):
            for name in names:
                yield Path(folder, name)
