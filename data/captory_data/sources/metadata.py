"""A folder whose images are listed in `metadata.jsonl` or `metadata.csv`, one row an image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from captory_data.errors import ItemError, Reason, SourceError
from captory_data.keys import relative_path
from captory_data.sources.columns import described
from captory_data.sources.entry import Entry, Scan

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
MAX_LINE_CHARACTERS = 1 << 20


def scan_metadata(root: Path, name: str) -> Scan:
    """Every row of the metadata file; what no row names is not read.

    Raises:
        SourceError: the file has no `file_name` column.
    """
    with open(root / name, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = _jsonl_rows(file) if name.endswith(".jsonl") else _csv_rows(file, root / name)
        for number, row in rows:
            yield _entry(f"{name}#row-{number}", row)


def _entry(place: str, row: Any) -> tuple[str, Entry]:
    name = row.get("file_name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        return place, Entry.broken(ItemError(Reason.BAD_METADATA, "the row has no file_name"))
    try:
        path = relative_path(name)
        return path, described(row, path)
    except ItemError as error:
        return name, Entry.broken(error)


def _jsonl_rows(file: TextIO) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := file.readline(MAX_LINE_CHARACTERS):
        number += 1
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            yield number, None


def _csv_rows(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file)
    if "file_name" not in (reader.fieldnames or ()):
        raise SourceError(f"{path} has no column file_name")
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            yield reader.line_num, None
            continue
        if row is None:
            return
        yield reader.line_num, row
