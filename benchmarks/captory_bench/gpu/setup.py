"""What every part of the run is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from captory_bench.gpu.clock import Budget
from captory_bench.gpu.models import FULL, TINY, Model


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: the full run on a GPU, or the same code at tiny sizes anywhere."""

    models: tuple[Model, ...]
    batches: tuple[int, ...]
    tuned_batch: int  # the batch that the variants are compared at
    calls: int  # steps a timed pass
    passes: int
    image_steps: int
    matrix_sizes: tuple[int, ...]
    mixed_steps: tuple[int, ...]
    mixed_images: int
    mixed_rows: int
    rounds: int
    photos: int
    compared_photos: int
    compiled: bool  # whether variants that compile are tried


FULL_SCALE = Scale(
    FULL, (1, 4, 16), 4, 5, 3, 20, (4096, 8192, 16384), (8, 16, 24, 32, 40), 40, 16, 3, 256, 16, compiled=True
)
TINY_SCALE = Scale(TINY, (1, 2), 2, 2, 2, 3, (256,), (2, 3, 5), 6, 4, 2, 4, 2, compiled=False)


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how it is measured. `rate` is the measured matrix rate, FLOP/s; `say` prints what happens.

    `num_threads` are the CPU's, which matter on a CPU alone.
    """

    device: torch.device
    dtype: str
    scale: Scale
    budget: Budget
    rate: float
    num_threads: int
    say: Callable[[str], None]
