"""The painter's modules, as diffusers has them, over named arrays: float32 in and out, weights of any type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """sample [B, C, H, W], timestep [B], encoder_hidden_states [B, T, D] to what the UNet predicts, [B, C, H, W].

    `conditions` are what SDXL adds (Podell et al. 2023, arXiv 2307.01952), one row each, for every row alike.
    """

    def __init__(self, unet: Any, conditions: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.unet = unet
        self._names = list(conditions or {})
        for name, value in (conditions or {}).items():
            self.register_buffer(name, value)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        """See the class."""
        dtype, rows = self.unet.dtype, len(sample)
        added = {name: getattr(self, name).expand(rows, -1) for name in self._names}
        latents = sample.to(dtype, memory_format=torch.channels_last)
        states = encoder_hidden_states.to(dtype)
        output = self.unet(latents, timestep, states, added_cond_kwargs=added or None, return_dict=False)
        return (output[0].to(torch.float32, memory_format=torch.contiguous_format),)


class VaeDecoder(nn.Module):
    """latent_sample [B, C, h, w], as the autoencoder has it, to sample [B, 3, H, W] in about [-1, 1]."""

    def __init__(self, vae: Any, pixel_shuffle_factor: int = 1) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        self._factor = pixel_shuffle_factor

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        """See the class."""
        latents = latent_sample.to(self.decoder.conv_in.weight.dtype, memory_format=torch.channels_last)
        pixels = functional.pixel_shuffle(self.decoder(self.post_quant_conv(latents)), self._factor)
        return (pixels.to(torch.float32, memory_format=torch.contiguous_format),)


def open_unet(folder: Path) -> nn.Module:
    """A UNet in diffusers' layout."""
    return UNet(UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True))


def open_vae(folder: Path) -> nn.Module:
    """An autoencoder in diffusers' layout; its config may name a `pixel_shuffle_factor`."""
    factor = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("pixel_shuffle_factor", 1)
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return VaeDecoder(vae, factor)
