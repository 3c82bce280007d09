"""One file a batch, numbered without gaps: what has a higher number than the ledger's last is unpublished."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from captory_data.durable import TMP_SUFFIX, storage_errors
from captory_data.ledger import Ledger
from captory_data.rows import Shard


class NumberedFiles:
    """The files `prefix-000000.suffix`, `prefix-000001.suffix`, … of a folder."""

    def __init__(self, folder: Path, prefix: str, suffix: str) -> None:
        self.folder = folder
        self._prefix = prefix
        self._suffix = suffix
        self._pattern = re.compile(rf"{prefix}-(\d{{6,}})\.{suffix}({re.escape(TMP_SUFFIX)})?")

    def path_of(self, number: int) -> Path:
        """The file of one batch."""
        return self.folder / f"{self._prefix}-{number:06d}.{self._suffix}"

    def path(self, shard: Shard) -> Path | None:
        """The file of a published batch."""
        return self.folder / shard.name

    def listing(self, ledger: Ledger, *, final: bool) -> list[Shard]:
        """Every published file."""
        return [shard for _, shard in ledger.shards()]

    def clean(self, ledger: Ledger) -> None:
        """Remove half-written files, and whole ones that were not published."""
        first_free = ledger.next_shard()
        for path in sorted(self.folder.iterdir()):
            found = self._pattern.fullmatch(path.name)
            if found and (found[2] or int(found[1]) >= first_free):
                with storage_errors(path):
                    path.unlink()

    def strays(self, ledger: Ledger) -> Iterator[Path]:
        """Files beside the published ones."""
        known = {shard.name for _, shard in ledger.shards()}
        return (path for path in sorted(self.folder.iterdir()) if path.name not in known)
