"""Classes go by a stable id; the name that people and prompts see is separate."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from captory_data.errors import SourceError
from captory_data.keys import safe_key

MAX_CLASSES = 100_000
MAX_CLASS_FILE_BYTES = 16 << 20
HEADERS = (("class_id", "class_name"), ("id", "name"))
RAW, CURATED = "raw", "curated"


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


class Named(NamedTuple):
    """One line of a classes file: a class with its raw name, and the curated one if the file has such."""

    id: str
    raw: str
    curated: str = ""


def read_classes(path: Path, which: str = RAW) -> Classes:
    """The raw or the curated names of a CSV, JSON or YAML file of classes.

    A CSV has two columns, id and name (a header is optional), or three under the header id, name, curated. In JSON and
    YAML each id stands for its name, or for an object of name and curated.

    Raises:
        SourceError: it cannot be read, is no such file, or has not the names that are asked for.
    """
    try:
        if path.stat().st_size > MAX_CLASS_FILE_BYTES:
            raise SourceError(f"{path} is larger than {MAX_CLASS_FILE_BYTES} bytes")
        rows = _rows(path.suffix.lower(), path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, csv.Error, yaml.YAMLError) as error:
        raise SourceError(f"classes file {path}: {error}") from error
    names = {safe_key(row.id): row.raw if which == RAW else row.curated for row in rows}
    if not names or len(names) < len(rows) or not all(row.id for row in rows):
        raise SourceError(f"classes file {path}: each class id is given once, with a name")
    for row in rows:
        if not row.raw:
            raise SourceError(f"classes file {path}: {safe_key(row.id)} is a class without a name")
        if not names[safe_key(row.id)]:
            raise SourceError(f"classes file {path}: class {safe_key(row.id)} has no {which} name")
    return Classes(names, closed=True)


def _rows(suffix: str, text: str) -> list[Named]:
    if suffix == ".csv":
        return _csv_rows(text)
    if suffix == ".json":
        return _mapping_rows(json.loads(text))
    if suffix in (".yaml", ".yml"):
        return _mapping_rows(yaml.safe_load(text))
    raise ValueError("the name must end in .csv, .json, .yaml or .yml")


def _csv_rows(text: str) -> list[Named]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    header = rows.pop(0) if rows and tuple(rows[0][:2]) in HEADERS and rows[0][2:] in ([], [CURATED]) else HEADERS[0]
    if any(len(row) != len(header) for row in rows):
        raise ValueError("each row has two columns, id and name, or three under the header id,name,curated")
    return [Named(*row) for row in rows]


def _mapping_rows(value: Any) -> list[Named]:
    if not isinstance(value, dict):
        raise ValueError("it must map class ids to display names")
    return [_mapping_row(class_id, names) for class_id, names in value.items()]


def _mapping_row(class_id: Any, names: Any) -> Named:
    given = names if isinstance(names, dict) else {"name": names}
    if not given.keys() <= {"name", CURATED} or "name" not in given:
        raise ValueError("each class id has a name, or an object of name and curated")
    return Named(_scalar(class_id), _scalar(given["name"]), _scalar(given.get(CURATED, "")))


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        raise ValueError("a class id or name was read as true or false: quote it")
    if not isinstance(value, str | int):
        raise ValueError("class ids and names are texts (quote words such as yes and no)")
    return str(value).strip()
