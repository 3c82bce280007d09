"""Gaussian noise from a seed, defined here to the bit, so that no library's changed stream changes an image."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

_MANTISSA = 2.0**-53


class _Philox(threading.local):
    """One generator a thread, set to its start for each key: making one costs ten times as much."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)

    def raw(self, seed: int, stream: int, size: int) -> NDArray[np.uint64]:
        """The first `size` outputs for a key, [size], uint64."""
        self._bits.state = {
            "bit_generator": "Philox",
            "state": {"counter": np.zeros(4, np.uint64), "key": np.array([seed, stream], np.uint64)},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._bits.random_raw(size)


_PHILOX = _Philox()


def seeded_uniform(seed: int, size: int, stream: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), [size], float64, from Philox4x64-10 keyed by (seed, stream).

    Only the raw counter output is taken from NumPy: it is the published algorithm and never changes.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    raw = _PHILOX.raw(seed, stream, size)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * _MANTISSA


def gaussian_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of `shape`, float32, for one item (Box and Muller 1958, both branches)."""
    size = math.prod(shape)
    pairs = (size + 1) // 2
    uniform = seeded_uniform(seed, 2 * pairs)
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:size].astype(np.float32).reshape(shape)
