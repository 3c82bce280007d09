"""The columns that a metadata row or a sample's JSON may bring: class, caption, prompt, attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from captory_data.errors import ItemError, Reason
from captory_data.sources.entry import MAX_TEXT_BYTES, Entry

CLASS_ID_COLUMNS = ("class_id", "label", "class")
CAPTION_COLUMNS = ("caption", "text")
MAX_CLASS_CHARACTERS = 256
# What a server takes of one item.
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTES_BYTES = 8192
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def described(row: Mapping[str, Any], path: str | None = None) -> Entry:
    """An entry from a row's columns; the ones that it lacks or leaves empty are not given."""
    class_id = first_text(row, CLASS_ID_COLUMNS)
    class_name = first_text(row, ("class_name",))
    if max(len(class_id or ""), len(class_name or "")) > MAX_CLASS_CHARACTERS:
        raise ItemError(Reason.TOO_LARGE, f"the class is longer than {MAX_CLASS_CHARACTERS} characters")
    return Entry(
        class_id=class_id or class_name,
        class_name=class_name,
        caption=first_text(row, CAPTION_COLUMNS),
        prompt=first_text(row, ("prompt",)),
        path=path,
        attributes=_attributes(row.get("attributes")),
    )


def first_text(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    """The first of the columns that holds a text or a whole number."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return bounded(value.strip())
    return None


def bounded(text: str) -> str:
    """The text, unless it is too long to be a caption, a prompt or a name."""
    if len(text.encode(errors="surrogatepass")) > MAX_TEXT_BYTES:
        raise ItemError(Reason.TOO_LARGE, f"a text is longer than {MAX_TEXT_BYTES} bytes")
    return text.encode(errors="replace").decode()


def _attributes(value: object) -> tuple[str, ...]:
    """What a text lists, separated by semicolons, or a list of texts."""
    listed = value.split(";") if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise ItemError(Reason.BAD_METADATA, "the attributes are neither a text nor a list of texts")
    attributes = tuple(filter(None, map(_one_line, listed)))
    if len(attributes) > MAX_ATTRIBUTES or sum(len(one.encode()) for one in attributes) > MAX_ATTRIBUTES_BYTES:
        raise ItemError(
            Reason.BAD_METADATA, f"more than {MAX_ATTRIBUTES} attributes, or {MAX_ATTRIBUTES_BYTES} bytes of them"
        )
    return attributes


def _one_line(text: str) -> str:
    """The text as it may go to a server: one line of Unicode, without control characters."""
    return " ".join(CONTROLS.sub(" ", text).split()).encode(errors="replace").decode()
