"""What a benchmark is of, and whom it tells how it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Say = Callable[[str], object]


class Subject(NamedTuple):
    """The graphs that are measured, and what runs them. Given to a function in this order, as `*subject`."""

    repository: Path
    family: str = ""  # the repository's only one if empty
    backend: str = "onnx"
    num_threads: int = 0  # all CPUs
