"""Memory that this process and a Triton on the same host both map: tensors that lie in it are not sent.

A Triton that was restarted knows no regions any more; new ones take their place. What a killed process has left, in
memory and in Triton, the next one takes away. Regions are for one event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, shared_memory

from captory_engine.sessions.base import Array
from captory_engine.sessions.triton_link import LATE, NOBODY, status_of

ALIGNED_BYTES = 64
LEAST_BYTES = 1 << 12
FAREWELL_S = 2.0
MOUNT = Path("/dev/shm")  # noqa: S108 - of the system's shared memory
PREFIX = "captory-tensors-"
_NAME = re.compile(rf"{PREFIX}[\w-]+")  # Triton tells names that others chose


class Region:
    """A piece of shared memory with room for several tensors. Raises `SharedMemoryException` when there is none.

    Its file is locked as long as this process lives, which tells it from what a killed one has left.
    """

    def __init__(self, num_bytes: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{uuid4().hex}"
        self._handle = shared_memory.create_shared_memory_region(self.name, self.name, num_bytes, create_only=True)
        self._file: IO[bytes] | None = None
        try:
            self._file = _claimed(MOUNT / self.name, num_bytes)
        except OSError as error:
            self.destroy()
            raise shared_memory.SharedMemoryException(f"no room in {MOUNT}") from error

    def write(self, array: Array, offset: int) -> None:
        """Lay an array down."""
        shared_memory.set_shared_memory_region(self._handle, [array], offset)

    def read(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Array:
        """A copy of an array that lies there."""
        lying: Array = shared_memory.get_contents_as_numpy(self._handle, dtype, shape, offset)
        return lying.copy()

    def destroy(self) -> None:
        """Give the memory back, as soon as Triton does so too; somebody else may have taken its file away."""
        with suppress(FileNotFoundError):
            shared_memory.destroy_shared_memory_region(self._handle)
        if self._file is not None:
            self._file.close()


class Regions:
    """Regions of a few sizes, each used by one call at a time; as many as there were calls at once."""

    def __init__(self, client: InferenceServerClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._free: defaultdict[int, list[Region]] = defaultdict(list)
        self._closed = False

    @asynccontextmanager
    async def lent(self, num_bytes: int) -> AsyncIterator[Region]:
        """A region of at least so many bytes, which Triton knows, for one call.

        Should that fail, nobody uses it again: Triton may still read it, and write to it. Raises
        `SharedMemoryException` where there is no room, or Triton cannot map it.
        """
        size = max(LEAST_BYTES, 1 << (num_bytes - 1).bit_length())
        region = self._free[size].pop() if self._free[size] else await self._made(size)
        try:
            yield region
        except BaseException:
            await self._drop(region)
            raise
        if self._closed:
            await self._drop(region)
        else:
            self._free[size].append(region)

    async def close(self) -> None:
        """Take away all regions, those that are lent when they come back."""
        self._closed = True
        await self.clear()

    async def clear(self) -> None:
        """Take away all regions that are not lent."""
        regions = [region for free in self._free.values() for region in free]
        self._free.clear()
        await self._drop(*regions)

    async def sweep(self) -> None:
        """Take away what processes that were killed have left."""
        status: Any = await self._client.get_system_shared_memory_status(client_timeout=self._timeout_s)
        await self._forget(_left(status.regions))

    async def _made(self, size: int) -> Region:
        region = Region(size)
        try:
            await self._client.register_system_shared_memory(
                region.name, region.name, size, client_timeout=self._timeout_s
            )
        except InferenceServerException as error:
            await self._drop(region)
            if status_of(error) in (*NOBODY, LATE):
                raise
            raise shared_memory.SharedMemoryException("Triton cannot map it") from error
        except BaseException:
            await self._drop(region)
            raise
        return region

    async def _drop(self, *regions: Region) -> None:
        for region in regions:
            region.destroy()
        await self._forget([region.name for region in regions])

    async def _forget(self, names: Iterable[str]) -> None:
        """Have Triton forget them, if it still answers."""
        farewells = [self._client.unregister_system_shared_memory(name, client_timeout=FAREWELL_S) for name in names]
        await asyncio.gather(*farewells, return_exceptions=True)


def offsets(num_bytes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where tensors of these sizes lie one after the other, and the bytes of all."""
    places, end = {}, 0
    for name, size in num_bytes.items():
        places[name] = end
        end += -(-size // ALIGNED_BYTES) * ALIGNED_BYTES
    return places, end


def _claimed(path: Path, num_bytes: int) -> IO[bytes]:
    """A region's file, locked, and its memory taken now: a first write that finds none left would kill us."""
    file = path.open("r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError:
        file.close()
        raise
    return file


def _left(registered: Iterable[str]) -> list[str]:
    """The regions, of those that Triton knows and those that lie there, whose makers are gone; their files go now."""
    names = {*registered, *(path.name for path in MOUNT.glob(f"{PREFIX}*"))}
    left = [name for name in names if _NAME.fullmatch(name) and _is_left(MOUNT / name)]
    for name in left:
        (MOUNT / name).unlink(missing_ok=True)
    return left


def _is_left(path: Path) -> bool:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:  # its maker holds it, or it is another user's
        return False
    return True
