"""Tensors of one device behind the verbs of `Arrays`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor


class TorchArrays:
    """Tensors on `device`. Work there is queued: only `to_host` waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_host = device.type == "cpu"

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        """See `Arrays`."""
        return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=self.device)

    def from_host(self, array: NDArray[Any] | Tensor) -> Tensor:
        """See `Arrays`."""
        return torch.as_tensor(array, device=self.device)

    def to_host(self, array: Tensor) -> NDArray[Any]:
        """See `Arrays`."""
        host: NDArray[Any] = array.cpu().numpy()
        return host

    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """See `Arrays`; takes NumPy's too."""
        return torch.cat(list(arrays)) if isinstance(arrays[0], Tensor) else np.concatenate(arrays)


class Face(NamedTuple):
    """What a session checks of an array, in NumPy's words, without looking at its values."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    ndim: int


def face(array: NDArray[Any] | Tensor) -> Any:
    """The face of an array of either kind."""
    if isinstance(array, Tensor):
        return Face(torch.empty(0, dtype=array.dtype).numpy().dtype, tuple(array.shape), array.ndim)
    return array
