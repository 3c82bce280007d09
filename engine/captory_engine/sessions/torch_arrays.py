"""Tensors of one device behind the verbs of `Arrays`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from captory_engine.errors import OutOfMemory

# What torch calls its allocator on the CPU, whose errors have no class of their own.
CPU_ALLOCATOR = "DefaultCPUAllocator"


class TorchArrays:
    """Tensors on `device`. Work there is queued: only `to_host` waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_host = device.type == "cpu"

    @contextmanager
    def guard(self) -> Iterator[None]:
        """See `Arrays`. Within it the device is the current one, as CUDA graphs and TensorRT want it."""
        try:
            with nullcontext() if self.on_host else torch.cuda.device(self.device):
                yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            raise OutOfMemory("OUT_OF_MEMORY", f"The batch does not fit the memory of {self.device}.") from error

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


def is_out_of_memory(error: BaseException | None) -> bool:
    """A graph's capture that fails for want of memory ends in another error, which has the first as its context."""
    if error is None:
        return False
    told = isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)
    return told or is_out_of_memory(error.__context__)


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
