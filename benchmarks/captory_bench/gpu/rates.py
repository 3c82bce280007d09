"""The rate that everything is held against: the best that this device reaches in plain matrix multiplication."""

from __future__ import annotations

from typing import Any

import torch

from captory_bench.gpu.clock import seconds_of


def matrix_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> dict[str, Any]:
    """FLOP/s of square products by size, and the best of them."""
    by_size = {size: _rate(device, dtype, size) for size in sizes}
    return {"dtype": str(dtype).removeprefix("torch."), "by_size": by_size, "best": max(by_size.values())}


def _rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    values = seconds_of(lambda: torch.mm(a, b, out=out), device, calls=10, passes=5)
    return 2.0 * size**3 / min(values)
