"""Memory that this process and a Triton on the same host both map: tensors that lie in it are not sent.

For one event loop. A Triton that was restarted knows no regions any more; new ones take their place.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import shared_memory

from captory_engine.sessions.base import Array

ALIGNED_BYTES = 64
LEAST_BYTES = 1 << 12
FAREWELL_S = 2.0
MOUNT = "/dev/shm"  # noqa: S108 - of the system's shared memory


class Region:
    """A piece of shared memory with room for several tensors. Raises `SharedMemoryException` when there is none."""

    def __init__(self, num_bytes: int) -> None:
        if (
            shutil.disk_usage(MOUNT).free < num_bytes
        ):  # it would be made all the same, and the first write would kill us
            raise shared_memory.SharedMemoryException(f"no room in {MOUNT}")
        self.name = f"captory-{uuid4().hex}"
        self._handle = shared_memory.create_shared_memory_region(self.name, self.name, num_bytes, create_only=True)

    def write(self, array: Array, offset: int) -> None:
        """Lay an array down."""
        shared_memory.set_shared_memory_region(self._handle, [array], offset)

    def read(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Array:
        """A copy of an array that lies there."""
        lying: Array = shared_memory.get_contents_as_numpy(self._handle, dtype, shape, offset)
        return lying.copy()

    def destroy(self) -> None:
        """Give the memory back, as soon as Triton does so too."""
        shared_memory.destroy_shared_memory_region(self._handle)


class Regions:
    """Regions of a few sizes, each used by one call at a time; as many as there were calls at once."""

    def __init__(self, client: InferenceServerClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._free: defaultdict[int, list[Region]] = defaultdict(list)

    @asynccontextmanager
    async def lent(self, num_bytes: int) -> AsyncIterator[Region]:
        """A region of at least so many bytes, which Triton knows, for one call.

        Should that fail, nobody uses it again: Triton may still read it, and write to it.
        """
        size = max(LEAST_BYTES, 1 << (num_bytes - 1).bit_length())
        region = self._free[size].pop() if self._free[size] else await self._made(size)
        try:
            yield region
        except BaseException:
            await self._drop(region)
            raise
        self._free[size].append(region)

    async def clear(self) -> None:
        """Take away all regions that are not lent."""
        regions = [region for free in self._free.values() for region in free]
        self._free.clear()
        await self._drop(*regions)

    async def _made(self, size: int) -> Region:
        region = Region(size)
        try:
            await self._client.register_system_shared_memory(
                region.name, region.name, size, client_timeout=self._timeout_s
            )
        except BaseException:
            await self._drop(region)
            raise
        return region

    async def _drop(self, *regions: Region) -> None:
        """Destroy them, and tell Triton if it still answers."""
        for region in regions:
            region.destroy()
        farewells = [
            self._client.unregister_system_shared_memory(region.name, client_timeout=FAREWELL_S) for region in regions
        ]
        await asyncio.gather(*farewells, return_exceptions=True)


def offsets(num_bytes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where tensors of these sizes lie one after the other, and the bytes of all."""
    places, end = {}, 0
    for name, size in num_bytes.items():
        places[name] = end
        end += -(-size // ALIGNED_BYTES) * ALIGNED_BYTES
    return places, end
