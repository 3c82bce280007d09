"""The one contract of every backend: named arrays in, named arrays out, shapes and limits declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output. `shape` is without the batch dimension; -1 is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Session(Protocol):
    """A loaded graph. `run` blocks, may be called from several threads at once, and takes [B, *shape] arrays."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    digest: str
    backend: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch.

        Raises `InvalidInput` for names, types or shapes that differ from `inputs` (checked before anything
        is computed), `BadOutput` for outputs of another batch size, `OutOfMemory` for a batch that is too
        large for the backend, `Unavailable` when it is down.
        """
        ...

    def close(self) -> None:
        """Free what the session holds; further calls raise `Unavailable`."""
        ...
