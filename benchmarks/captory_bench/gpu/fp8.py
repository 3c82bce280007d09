"""Linear layers on 8-bit floats, a variant that is timed beside the others but never the headline.

Format e4m3 (Micikevicius et al. 2022, arXiv 2209.05433), one scale a tensor, the inputs' taken anew in every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 448.0
MULTIPLE = 16  # of both widths, as the product of 8-bit floats wants them


class Fp8Linear(nn.Module):
    """y = x @ weight.T + bias, both factors rounded to 8 bits, the sum in more."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self._scale = float(weight.abs().amax().float()) / LARGEST
        # as bytes, so that a change of the module's type leaves them alone
        self.register_buffer("bits", _rounded(weight, self._scale).view(torch.uint8))
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """See the class; states [..., K], of the type of the result."""
        flat = states.flatten(0, -2)
        scale = flat.abs().amax().float().clamp(min=1e-12) / LARGEST
        product: Tensor = torch.ops.aten._scaled_mm(
            _rounded(flat, scale),
            self.get_buffer("bits").view(torch.float8_e4m3fn).t(),
            scale_a=scale,
            scale_b=torch.full_like(scale, self._scale),
            bias=self.bias,
            out_dtype=states.dtype,
            use_fast_accum=True,
        )
        return product.reshape(*states.shape[:-1], -1)


def use_fp8(unet: Any) -> None:
    """Put 8-bit layers in place of all that fit of the UNet's transformer blocks."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and "transformer_blocks" in name and _fits(module):
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, Fp8Linear(module))


def _fits(linear: nn.Linear) -> bool:
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0


def _rounded(values: Tensor, scale: Tensor | float) -> Tensor:
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
