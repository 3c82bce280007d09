"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752): CLIP's text encoder and a UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captory_export.checkpoints import Checkpoint
from captory_export.exportable import Axis, Graph
from captory_export.painters.latent_diffusion import (
    Kind,
    LatentPainter,
    Size,
    Text,
    diffusion_schedule,
    num_tokens,
    open_painter,
    refuse_guided,
)
from captory_export.pretrained import load, refuse


class TextEncoderGraph(nn.Module):
    """`CLIPTextModel`: input_ids [B, T] to last_hidden_state [B, T, D]."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the states of the last layer, normalised."""
        states: Tensor = self.text_encoder(input_ids).last_hidden_state
        return states


class UNetGraph(nn.Module):
    """`UNet2DConditionModel`: sample [B, C, H, W], timestep [B], encoder_hidden_states [B, T, D] to [B, C, H, W]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Return what the UNet predicts (epsilon or v, as it was trained)."""
        output: Tensor = self.unet(sample, timestep, encoder_hidden_states).sample
        return output


def text_encoder_graph(text_encoder: Any) -> Graph:
    """The graph of a `CLIPTextModel`."""
    config = text_encoder.config
    ids = torch.randint(config.vocab_size, (2, config.max_position_embeddings))
    return Graph(TextEncoderGraph(text_encoder), {"input_ids": ids}, ["last_hidden_state"])


def unet_graph(unet: Any, num_tokens: int, latents: Tensor, axes: Mapping[int, Axis]) -> Graph:
    """The graph of a `UNet2DConditionModel` behind texts of `num_tokens`."""
    states = torch.randn(2, num_tokens, unet.config.encoder_hid_dim or unet.config.cross_attention_dim)
    inputs = {"sample": latents, "timestep": torch.tensor([900.0, 20.0]), "encoder_hidden_states": states}
    return Graph(UNetGraph(unet), inputs, ["out_sample"], {"sample": axes}, ["timestep"])


def open_stable_diffusion(checkpoint: Checkpoint, sizes: Sequence[Size] = ()) -> LatentPainter:
    """A folder of `StableDiffusionPipeline`, its safety checker left out. Raises `BadModel`."""
    refuse_guided(checkpoint)
    masked = bool(checkpoint.settings("text_encoder/config.json").get("use_attention_mask"))
    refuse(checkpoint, {"a text encoder that takes an attention mask": masked})
    return open_painter(checkpoint, KIND, sizes)


def _texts(checkpoint: Checkpoint) -> list[Text]:
    return [Text("input_ids", "tokenizer", num_tokens(checkpoint, "text_encoder"))]


def _load_text(checkpoint: Checkpoint) -> Graph:
    from transformers import CLIPTextModel

    return text_encoder_graph(load(CLIPTextModel, checkpoint, "text_encoder"))


def _load_unet(checkpoint: Checkpoint, latents: Tensor, axes: Mapping[int, Axis]) -> Graph:
    from diffusers import UNet2DConditionModel

    unet = load(UNet2DConditionModel, checkpoint, "unet")
    return unet_graph(unet, num_tokens(checkpoint, "text_encoder"), latents, axes)


KIND = Kind(
    architecture="stable-diffusion",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    texts=_texts,
    text_graph=_load_text,
    denoiser_graph=_load_unet,
    conditions={"encoder_hidden_states": "last_hidden_state"},
    schedule=diffusion_schedule,
    defaults={"steps": 25, "guidance_scale": 7.5, "sampler": "dpmpp-2m"},
)
