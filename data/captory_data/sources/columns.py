"""The columns that a metadata row or a sample's JSON may bring: class, caption, prompt, attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from captory_data.errors import ItemError, Reason
from captory_data.sources.entry import MAX_TEXT_BYTES, Entry

CLASS_ID_COLUMNS = ("class_id", "label", "class")
CAPTION_COLUMNS = ("caption", "text")
MAX_CLASS_CHARACTERS = 256


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
        attributes=first_text(row, ("attributes",)),
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
