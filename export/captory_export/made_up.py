"""Images that nobody took: input for checks of graphs that see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def made_up_images(num_images: int, width_px: int, height_px: int) -> Tensor:
    """Smooth noise, [B, 3, height, width] in -1..1, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, 4, 4, generator=generator) * 2 - 1
    return functional.interpolate(coarse, size=(height_px, width_px), mode="bilinear")
