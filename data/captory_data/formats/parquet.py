"""Parquet parts whose image column `datasets` decodes by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from captory_data.durable import atomic_file, file_sha256
from captory_data.formats.base import Layout, Sample, Stored
from captory_data.formats.numbered import NumberedFiles
from captory_data.formats.table import IMAGE_TYPE, columns_of, schema_for
from captory_data.rows import ImageRow, Shard

BATCH_ROWS = 64


class ParquetFormat(NumberedFiles):
    """`data/part-000000.parquet` and on."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.out / "data", "part", "parquet")
        self._image_suffix = layout.suffix
        self._schema = schema_for(layout.classes, {"image": IMAGE_TYPE})

    def write(self, number: int, samples: Sequence[Sample]) -> Shard:
        """One part, in the order given."""
        path = self.path_of(number)
        table = pa.Table.from_pylist([self._row(sample) for sample in samples], schema=self._schema)
        with atomic_file(path) as file:
            pq.write_table(table, file)
        return Shard(path.name, file_sha256(path), len(samples))

    def _row(self, sample: Sample) -> dict[str, object]:
        image = {"bytes": sample.image, "path": f"{sample.record.id}.{self._image_suffix}"}
        return {"image": image, **columns_of(sample.record, sample.class_position)}

    def read(self, shard: Shard, rows: Sequence[ImageRow]) -> Iterator[Stored]:
        """The part's samples, all of them."""
        try:
            with pq.ParquetFile(self.folder / shard.name) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=["id", "image", "text", "record"]):
                    for row in batch.to_pylist():
                        yield Stored(row["id"], row["image"]["bytes"], row["record"], row["text"])
        except pa.ArrowException as error:
            raise ValueError(f"the part is damaged: {error}") from error
