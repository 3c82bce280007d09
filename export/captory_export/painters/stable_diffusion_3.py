"""Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206): a transformer of rectified flow behind two or three texts.

T5 is left out where the checkpoint's folder has none; its states are zeros then, as the pipeline has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captory_engine.errors import BadModel
from captory_export.checkpoints import Checkpoint
from captory_export.exportable import Axis, Graph
from captory_export.painters.latent_diffusion import (
    Kind,
    LatentPainter,
    Size,
    Text,
    denoiser_config,
    num_tokens,
    open_painter,
)
from captory_export.pretrained import load

NUM_T5_TOKENS = 256
UNKNOWN_TO_FLOW = (
    "use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal",
    "invert_sigmas", "stochastic_sampling",
)  # fmt: skip


class ThreeTextEncodersGraph(nn.Module):
    """input_ids, input_ids_2 [B, T], with T5 input_ids_3 [B, 256], to last_hidden_state and pooled [B, P].

    The states, [B, T + 256, D], are CLIP's before the last layer, filled up with zeros to T5's width D, then T5's.
    """

    def __init__(self, first: Any, second: Any, t5: Any | None, width: int) -> None:
        super().__init__()
        self.first, self.second, self.t5, self.width = first, second, t5, width

    def forward(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode a prompt by all."""
        first = self.first(input_ids, output_hidden_states=True)
        second = self.second(input_ids_2, output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        clip = functional.pad(clip, (0, self.width - clip.shape[-1]))
        if self.t5 is None:
            long = clip.new_zeros(clip.shape[0], NUM_T5_TOKENS, self.width)
        else:
            long = self.t5(input_ids_3).last_hidden_state
        return torch.cat([clip, long], dim=1), torch.cat([first.text_embeds, second.text_embeds], dim=-1)


class TransformerGraph(nn.Module):
    """sample [B, C, H, W], timestep [B], encoder_hidden_states [B, T, D], pooled_projections [B, P] to [B, C, H, W]."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor
    ) -> Tensor:
        """Return the velocity of the flow."""
        output: Tensor = self.transformer(
            hidden_states=sample,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
        ).sample
        return output


def three_text_encoders_graph(first: Any, second: Any, t5: Any | None, width: int) -> Graph:
    """The graph of two `CLIPTextModelWithProjection` and a `T5EncoderModel`, or none; states of `width`."""
    clips = {"input_ids": first.config, "input_ids_2": second.config}
    ids = {name: torch.randint(one.vocab_size, (2, one.max_position_embeddings)) for name, one in clips.items()}
    if t5 is not None:
        ids["input_ids_3"] = torch.randint(t5.config.vocab_size, (2, NUM_T5_TOKENS))
    return Graph(ThreeTextEncodersGraph(first, second, t5, width), ids, ["last_hidden_state", "pooled"])


def transformer_graph(transformer: Any, num_clip_tokens: int, latents: Tensor) -> Graph:
    """The graph of an `SD3Transformer2DModel`."""
    config = transformer.config
    inputs = {
        "sample": latents,
        "timestep": torch.tensor([900.0, 20.0]),
        "encoder_hidden_states": torch.randn(2, num_clip_tokens + NUM_T5_TOKENS, config.joint_attention_dim),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim),
    }
    return Graph(TransformerGraph(transformer), inputs, ["out_sample"], reshaped=["timestep"])


def open_stable_diffusion_3(checkpoint: Checkpoint, sizes: Sequence[Size] = ()) -> LatentPainter:
    """A folder of `StableDiffusion3Pipeline`. Raises `BadModel`."""
    return open_painter(checkpoint, KIND, sizes)


def _has_t5(checkpoint: Checkpoint) -> bool:
    return (checkpoint.path / "text_encoder_3" / "config.json").is_file()


def _texts(checkpoint: Checkpoint) -> list[Text]:
    texts = [
        Text("input_ids", "tokenizer", num_tokens(checkpoint, "text_encoder")),
        Text("input_ids_2", "tokenizer_2", num_tokens(checkpoint, "text_encoder_2")),
    ]
    return [*texts, Text("input_ids_3", "tokenizer_3", NUM_T5_TOKENS)] if _has_t5(checkpoint) else texts


def _load_texts(checkpoint: Checkpoint) -> Graph:
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    first = load(CLIPTextModelWithProjection, checkpoint, "text_encoder")
    second = load(CLIPTextModelWithProjection, checkpoint, "text_encoder_2")
    t5 = load(T5EncoderModel, checkpoint, "text_encoder_3") if _has_t5(checkpoint) else None
    width = denoiser_config(checkpoint, KIND)["joint_attention_dim"]
    return three_text_encoders_graph(first, second, t5, width)


def _load_transformer(checkpoint: Checkpoint, latents: Tensor, axes: Mapping[int, Axis]) -> Graph:
    from diffusers import SD3Transformer2DModel

    assert not axes, "positions are cut for one size"
    transformer = load(SD3Transformer2DModel, checkpoint, "transformer")
    return transformer_graph(transformer, num_tokens(checkpoint, "text_encoder"), latents)


def _flow(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The family file's schedule of flow. Raises `BadModel` for one that the sampler does not know."""
    odd = [name for name in UNKNOWN_TO_FLOW if scheduler.get(name)]
    if odd:
        raise BadModel("SCHEDULE_UNSUPPORTED", f"A scheduler with {' and '.join(odd)} is not supported.")
    kept = {key: scheduler[key] for key in ("num_train_timesteps", "shift") if key in scheduler}
    return {**kept, "prediction_type": "flow"}


KIND = Kind(
    architecture="stable-diffusion-3",
    denoiser="transformer",
    denoiser_class="SD3Transformer2DModel",
    texts=_texts,
    text_graph=_load_texts,
    denoiser_graph=_load_transformer,
    conditions={"encoder_hidden_states": "last_hidden_state", "pooled_projections": "pooled"},
    schedule=_flow,
    defaults={"steps": 28, "guidance_scale": 7.0, "sampler": "flow-euler"},
    any_size=False,
)
