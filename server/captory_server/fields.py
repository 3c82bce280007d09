"""Checks of single fields that a caller filled in; each refuses with the field's name."""

from __future__ import annotations

import math
import re
import unicodedata

from captory_engine.errors import InvalidInput

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_SEED = 2**53 - 1
_REFUSED_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}  # controls, lone surrogates, line and paragraph separators


def refuse(field: str, message: str) -> InvalidInput:
    """The error for one field."""
    return InvalidInput("BAD_FIELD", f"{field}: {message}", field=field)


def check_id(field: str, value: str) -> str:
    """A name that a client chose."""
    if not ID.fullmatch(value):
        raise refuse(field, "must be 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return value


def check_text(field: str, value: str, max_bytes: int, *, may_be_empty: bool = True) -> str:
    """Text of at most `max_bytes` in UTF-8, on one line, without control characters."""
    if len(value) > max_bytes or len(value.encode()) > max_bytes:
        raise refuse(field, f"must have at most {max_bytes} bytes")
    if not value.isprintable() and any(unicodedata.category(char) in _REFUSED_CATEGORIES for char in value):
        raise refuse(field, "must not have control characters or line breaks")
    if not may_be_empty and not value.strip():
        raise refuse(field, "must not be empty")
    return value


def check_int(field: str, value: int, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not low <= value <= high:
        raise refuse(field, f"must be from {low} to {high}")
    return value


def check_float(field: str, value: float, low: float, high: float) -> float:
    """A finite number from `low` to `high`."""
    if not math.isfinite(value) or not low <= value <= high:
        raise refuse(field, f"must be a number from {low:g} to {high:g}")
    return value


def check_seed(field: str, value: int) -> int:
    """A seed below 2**53, which JSON numbers carry exactly."""
    return check_int(field, value, 0, MAX_SEED)
