"""Classes go by a stable id; the name that people and prompts see is separate."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from captory_data.errors import SourceError
from captory_data.keys import safe_key

MAX_CLASSES = 100_000
MAX_CLASS_FILE_BYTES = 16 << 20
HEADERS = (("class_id", "class_name"), ("id", "name"))


@dataclass(frozen=True, slots=True)
class Classes:
    """Display names by class id. A `closed` set (read from a file) knows every class that may occur."""

    names: Mapping[str, str]
    closed: bool = False

    def knows(self, class_id: str | None) -> bool:
        """Whether items of this class may be used; an item without a class always may."""
        return class_id is None or not self.closed or class_id in self.names

    def name(self, class_id: str | None) -> str:
        """The display name; empty without a class."""
        return "" if class_id is None else self.names.get(class_id, class_id)

    def ids(self) -> list[str]:
        """Every class id, sorted."""
        return sorted(self.names)


def read_classes(path: Path) -> Classes:
    """A CSV (two columns, header optional), JSON or YAML file: class id to display name.

    Raises:
        SourceError: it cannot be read, or is no such mapping.
    """
    try:
        if path.stat().st_size > MAX_CLASS_FILE_BYTES:
            raise SourceError(f"{path} is larger than {MAX_CLASS_FILE_BYTES} bytes")
        pairs = _pairs(path.suffix.lower(), path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, csv.Error, yaml.YAMLError) as error:
        raise SourceError(f"classes file {path}: {error}") from error
    names = {safe_key(class_id): name for class_id, name in pairs}
    if not names or len(names) < len(pairs) or not all(key and name for key, name in pairs):
        raise SourceError(f"classes file {path}: each class id is given once, with a name")
    return Classes(names, closed=True)


def _pairs(suffix: str, text: str) -> list[tuple[str, str]]:
    if suffix == ".csv":
        return _csv_pairs(text)
    if suffix == ".json":
        return _mapping_pairs(json.loads(text))
    if suffix in (".yaml", ".yml"):
        return _mapping_pairs(yaml.safe_load(text))
    raise ValueError("the name must end in .csv, .json, .yaml or .yml")


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    rows = [tuple(cell.strip() for cell in row) for row in csv.reader(text.splitlines()) if row]
    if rows and rows[0] in HEADERS:
        rows = rows[1:]
    if any(len(row) != 2 for row in rows):
        raise ValueError("each row has two columns: class id, display name")
    return [(row[0], row[1]) for row in rows]


def _mapping_pairs(value: Any) -> list[tuple[str, str]]:
    scalar = (str, int)
    if not isinstance(value, dict) or not all(isinstance(part, scalar) for pair in value.items() for part in pair):
        raise ValueError("it must map class ids to display names (quote words such as yes and no)")
    if any(isinstance(part, bool) for pair in value.items() for part in pair):
        raise ValueError("a class id or name was read as true or false: quote it")
    return [(str(key), str(name)) for key, name in value.items()]
