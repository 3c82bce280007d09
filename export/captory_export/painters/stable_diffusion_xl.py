"""SDXL (Podell et al. 2023, arXiv 2307.01952): two of CLIP's text encoders, and a UNet that is told sizes."""

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
    clip_config,
    diffusion_schedule,
    num_tokens,
    open_painter,
    refuse_guided,
)
from captory_export.pretrained import load

NUM_SIZES = 6


class TwoTextEncodersGraph(nn.Module):
    """input_ids and input_ids_2 [B, T] to last_hidden_state [B, T, D1 + D2] and pooled [B, P].

    States are those before the last layer, not normalised; `pooled` is the second encoder's projection.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a prompt by both."""
        first = self.first(input_ids, output_hidden_states=True)
        second = self.second(input_ids_2, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return states, second.text_embeds


class SizedUNetGraph(nn.Module):
    """sample [B, C, H, W], timestep [B], encoder_hidden_states [B, T, D], text_embeds [B, P], time_ids [B, 6]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        """Return what the UNet predicts, [B, C, H, W]."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        output: Tensor = self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added).sample
        return output


def two_text_encoders_graph(first: Any, second: Any) -> Graph:
    """The graph of a `CLIPTextModel` and a `CLIPTextModelWithProjection`."""
    ids = {
        name: torch.randint(encoder.config.vocab_size, (2, encoder.config.max_position_embeddings))
        for name, encoder in (("input_ids", first), ("input_ids_2", second))
    }
    return Graph(TwoTextEncodersGraph(first, second), ids, ["last_hidden_state", "pooled"])


def sized_unet_graph(unet: Any, text: tuple[int, int], latents: Tensor, axes: Mapping[int, Axis]) -> Graph:
    """The graph of SDXL's UNet; `text` is the number of tokens and the width of the pooled text."""
    num_states, pooled_width = text
    inputs = {
        "sample": latents,
        "timestep": torch.tensor([900.0, 20.0]),
        "encoder_hidden_states": torch.randn(2, num_states, unet.config.cross_attention_dim),
        "text_embeds": torch.randn(2, pooled_width),
        "time_ids": torch.full((2, NUM_SIZES), 512.0),
    }
    return Graph(SizedUNetGraph(unet), inputs, ["out_sample"], {"sample": axes}, ["timestep"])


def open_stable_diffusion_xl(checkpoint: Checkpoint, sizes: Sequence[Size] = ()) -> LatentPainter:
    """A folder of `StableDiffusionXLPipeline`. Raises `BadModel`."""
    refuse_guided(checkpoint)
    return open_painter(checkpoint, KIND, sizes)


def _texts(checkpoint: Checkpoint) -> list[Text]:
    return [
        Text("input_ids", "tokenizer", num_tokens(checkpoint, "text_encoder")),
        Text("input_ids_2", "tokenizer_2", num_tokens(checkpoint, "text_encoder_2")),
    ]


def _load_texts(checkpoint: Checkpoint) -> Graph:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = load(CLIPTextModel, checkpoint, "text_encoder")
    second = load(CLIPTextModelWithProjection, checkpoint, "text_encoder_2")
    return two_text_encoders_graph(first, second)


def _load_unet(checkpoint: Checkpoint, latents: Tensor, axes: Mapping[int, Axis]) -> Graph:
    from diffusers import UNet2DConditionModel

    unet = load(UNet2DConditionModel, checkpoint, "unet")
    pooled_width = clip_config(checkpoint, "text_encoder_2")["projection_dim"]
    return sized_unet_graph(unet, (num_tokens(checkpoint, "text_encoder"), pooled_width), latents, axes)


KIND = Kind(
    architecture="stable-diffusion-xl",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    texts=_texts,
    text_graph=_load_texts,
    denoiser_graph=_load_unet,
    conditions={"encoder_hidden_states": "last_hidden_state", "text_embeds": "pooled"},
    schedule=diffusion_schedule,
    defaults={"steps": 25, "guidance_scale": 5.0, "sampler": "dpmpp-2m"},
)
