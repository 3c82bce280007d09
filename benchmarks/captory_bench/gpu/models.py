"""The published painters, written down from their configurations, and tiny ones of the same blocks; random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.options import SessionOptions
from captory_engine.sessions.torch import TorchSession
from captory_engine.sessions.torch_painter import UNet, VaeDecoder

TOKENS = 77
TIME_IDS = 6
MAX_ROWS = 64
F32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Model:
    """A painter of one size. `published_tflop`: UNet forward of one row, as docs count it; 0: not known."""

    name: str
    size_px: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    published_tflop: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """One image's latents."""
        return self.unet["in_channels"], self.unet["sample_size"], self.unet["sample_size"]

    @property
    def text_shape(self) -> tuple[int, int]:
        """One prompt's states."""
        return TOKENS, self.unet["cross_attention_dim"]


_SD = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_TINY_VAE = {**_VAE, "layers_per_block": 1, "block_out_channels": (32, 32, 32, 32)}

SD15 = Model(
    "sd15",
    512,
    {
        **_SD,
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    _VAE,
    0.803,
)
SD21 = Model(
    "sd21",
    768,
    {
        **SD15.unet,
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    _VAE,
    2.149,
)
SDXL = Model(
    "sdxl",
    1024,
    {
        **_SDXL,
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    _VAE,
    6.761,
)
TINY_SD15 = Model(
    "sd15",
    64,
    {
        **_SD,
        "layers_per_block": 1,
        "sample_size": 8,
        "block_out_channels": (32, 32, 64, 64),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    },
    _TINY_VAE,
)
TINY_SDXL = Model(
    "sdxl",
    64,
    {
        **_SDXL,
        "layers_per_block": 1,
        "sample_size": 8,
        "block_out_channels": (32, 32, 64),
        "cross_attention_dim": 64,
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    },
    _TINY_VAE,
)
TINY_SD21 = Model("sd21", 64, {**TINY_SD15.unet, "cross_attention_dim": 48, "use_linear_projection": True}, _TINY_VAE)
FULL = (SDXL, SD15, SD21)  # the one with a target first
TINY = (TINY_SDXL, TINY_SD15, TINY_SD21)


def build_unet(model: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """The UNet with diffusers' own random start, made where it will run."""
    return _built(UNet2DConditionModel, model.unet, device, dtype)


def build_vae(model: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """The autoencoder with diffusers' own random start, made where it will run."""
    return _built(AutoencoderKL, model.vae, device, dtype)


def conditions(model: Model) -> dict[str, Tensor]:
    """What SDXL takes beside text states: pooled text and sizes, one row each; nothing for the others."""
    if model.unet.get("addition_embed_type") != "text_time":
        return {}
    pooled = model.unet["projection_class_embeddings_input_dim"] - TIME_IDS * model.unet["addition_time_embed_dim"]
    size = float(model.size_px)
    return {"text_embeds": torch.ones(1, pooled), "time_ids": torch.tensor([[size, size, 0.0, 0.0, size, size]])}


def open_unet(model: Model, unet: Any, options: SessionOptions) -> TorchSession:
    """The UNet as the engine runs it."""
    inputs = (
        TensorSpec("sample", F32, model.shape),
        TensorSpec("timestep", F32, ()),
        TensorSpec("encoder_hidden_states", F32, model.text_shape),
    )
    outputs = (TensorSpec("out_sample", F32, model.shape),)
    module = UNet(unet, conditions(model))
    return TorchSession(f"{model.name}_unet", module, inputs, outputs, max_batch=MAX_ROWS, options=options)


def open_vae(model: Model, vae: Any, options: SessionOptions) -> TorchSession:
    """The autoencoder's decoder as the engine runs it."""
    inputs = (TensorSpec("latent_sample", F32, model.shape),)
    outputs = (TensorSpec("sample", F32, (3, model.size_px, model.size_px)),)
    return TorchSession(f"{model.name}_vae", VaeDecoder(vae), inputs, outputs, max_batch=MAX_ROWS, options=options)


def count_flops(model: Model) -> tuple[int, int]:
    """FLOPs of one row's UNet forward and of one image's decoding, counted without computing."""
    with torch.device("meta"), torch.no_grad():
        unet, vae = UNet2DConditionModel(**model.unet), AutoencoderKL(**model.vae)
        latents, states = torch.zeros(1, *model.shape), torch.zeros(1, *model.text_shape)
        added = {name: value.to("meta") for name, value in conditions(model).items()}
        with FlopCounterMode(display=False) as forward:
            unet(latents, torch.zeros(1), states, added_cond_kwargs=added or None)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latents)
    return forward.get_total_flops(), decoding.get_total_flops()


def _built(kind: Any, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    with device:
        module: nn.Module = kind(**config)
    return module.to(dtype).eval().requires_grad_(False)
