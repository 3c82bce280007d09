"""WebDataset shards: `<id>.png`, `.json`, `.txt` and `.cls` side by side in tars, byte for byte the same each time."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby

from captory_data.durable import atomic_file, file_sha256
from captory_data.formats.base import Layout, Sample, Stored
from captory_data.formats.numbered import NumberedFiles
from captory_data.rows import ImageRow, Shard


class WebDatasetFormat(NumberedFiles):
    """`shards/shard-000000.tar` and on. In a job with classes, a sample without one has -1; without, no `.cls`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.out / "shards", "shard", "tar")
        self._image_suffix = layout.suffix
        self._has_classes = bool(layout.classes)

    def write(self, number: int, samples: Sequence[Sample]) -> Shard:
        """One tar, in the order given."""
        from webdataset.writer import TarWriter  # which imports torch where there is one

        path = self.path_of(number)
        with (
            atomic_file(path) as file,
            TarWriter(file, encoder=False, mtime=0, user="captory", group="captory", mode=0o644) as tar,
        ):
            for sample in samples:
                tar.write(self._members(sample))
        return Shard(path.name, file_sha256(path), len(samples))

    def _members(self, sample: Sample) -> dict[str, str | bytes]:
        members: dict[str, str | bytes] = {
            "__key__": sample.record.id,
            self._image_suffix: sample.image,
            "json": sample.row.record.encode(),
            "txt": sample.record.prompt.encode(),
        }
        return members | ({"cls": str(sample.class_position).encode()} if self._has_classes else {})

    def read(self, shard: Shard, rows: Sequence[ImageRow]) -> Iterator[Stored]:
        """The tar's samples, all of them."""
        try:
            with tarfile.open(self.folder / shard.name, "r:") as tar:
                for key, members in groupby(tar, key=lambda info: info.name.partition(".")[0]):
                    contents = {info.name.partition(".")[2]: _content(tar, info) for info in members}
                    yield self._stored(key, contents)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"the tar is damaged: {error}") from error

    def _stored(self, key: str, contents: dict[str, bytes]) -> Stored:
        expected = {self._image_suffix, "json", "txt"}
        if contents.keys() - {"cls"} != expected:
            raise ValueError(f"sample {key} has members {sorted(contents)}, not {sorted(expected)}")
        label = contents["cls"].decode() if "cls" in contents else None
        record = contents["json"].decode()
        return Stored(key, contents[self._image_suffix], record, contents["txt"].decode(), label)


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    if file is None:
        raise ValueError(f"{info.name} is not a file")
    return file.read()
