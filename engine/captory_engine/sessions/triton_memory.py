"""Memory that this process and a Triton on the same host both map: tensors that lie in it are not sent.

For one event loop. A Triton that was restarted knows no regions any more; it is told of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, shared_memory

from captory_engine.sessions.base import Array

ALIGNED_BYTES = 64
LEAST_BYTES = 1 << 12


class Region:
    """A piece of shared memory with room for several tensors. Raises `SharedMemoryException` when there is none."""

    def __init__(self, num_bytes: int) -> None:
        self.name = f"captory-{uuid4().hex}"
        self.num_bytes = num_bytes
        self.told = -1  # the server, counted, that knows it
        self._handle = shared_memory.create_shared_memory_region(self.name, self.name, num_bytes, create_only=True)

    def write(self, array: Array, offset: int) -> None:
        """Lay an array down."""
        shared_memory.set_shared_memory_region(self._handle, [array], offset)

    def read(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Array:
        """A copy of an array that lies there."""
        lying: Array = shared_memory.get_contents_as_numpy(self._handle, dtype, shape, offset)
        return lying.copy()

    def destroy(self) -> None:
        """Give the memory back."""
        shared_memory.destroy_shared_memory_region(self._handle)


class Regions:
    """Regions of a few sizes, each used by one call at a time; as many as there were calls at once."""

    def __init__(self, client: InferenceServerClient) -> None:
        self._client = client
        self._free: dict[int, list[Region]] = {}
        self._all: list[Region] = []
        self._server = 0

    async def borrow(self, num_bytes: int) -> Region:
        """A region of at least so many bytes, which Triton knows."""
        size = max(LEAST_BYTES, 1 << (num_bytes - 1).bit_length())
        free = self._free.setdefault(size, [])
        region = free.pop() if free else self._made(size)
        try:
            await self._tell(region)
        except BaseException:
            self.give_back(region)
            raise
        return region

    def give_back(self, region: Region) -> None:
        """The call that borrowed it is over."""
        self._free[region.num_bytes].append(region)

    def forget(self) -> None:
        """Triton may have been restarted: it is told of every region again before that is used."""
        self._server += 1

    async def close(self) -> None:
        """Take all regions away, from Triton too if it still answers."""
        for region in self._all:
            with suppress(InferenceServerException):
                await self._client.unregister_system_shared_memory(region.name)
            region.destroy()
        self._all.clear()
        self._free.clear()

    def _made(self, size: int) -> Region:
        region = Region(size)
        self._all.append(region)
        return region

    async def _tell(self, region: Region) -> None:
        if region.told == self._server:
            return
        if region.told >= 0:  # it may have been the channel that broke, not the server
            await self._client.unregister_system_shared_memory(region.name)
        await self._client.register_system_shared_memory(region.name, region.name, region.num_bytes)
        region.told = self._server


def offsets(num_bytes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where tensors of these sizes lie one after the other, and the bytes of all."""
    places, end = {}, 0
    for name, size in num_bytes.items():
        places[name] = end
        end += -(-size // ALIGNED_BYTES) * ALIGNED_BYTES
    return places, end
