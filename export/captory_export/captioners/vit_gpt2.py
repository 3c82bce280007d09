"""ViT-GPT2 captioners (transformers' `VisionEncoderDecoderModel`) as two graphs: image encoder, and token decoder.

The image encoder also projects the cross-attention keys and values, so they are computed once an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captory_export.cached_attention import attend, split_heads, visible_positions
from captory_export.captioners.captioner import Captioner, cache_of, num_states, pixels_of, words_of
from captory_export.checkpoints import Checkpoint
from captory_export.pretrained import generation_settings, read_config, refuse, special_ids


class VitGraph(nn.Module):
    """pixel_values [B, 3, size, size] to cross_keys and cross_values, each [B, L, H, patches + 1, Dh]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        crossing = [layer.crossattention for layer in model.decoder.transformer.h]
        self.vision = model.encoder
        self.widen = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.projections = nn.ModuleList(attention.c_attn for attention in crossing)
        self.head_dim = crossing[0].head_dim

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images and project what the decoder will attend to."""
        states = self.vision.embeddings(pixel_values)
        for layer in self.vision.encoder.layer:
            states = layer(states)
        states = self.widen(self.vision.layernorm(states))
        pairs = [project(states).chunk(2, dim=-1) for project in self.projections]
        keys, values = ([split_heads(part, self.head_dim) for part in parts] for parts in zip(*pairs, strict=True))
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)


class Gpt2DecoderGraph(nn.Module):
    """One step of GPT-2 (Radford et al. 2019) with cross-attention over S new tokens and a cache of T positions.

    input_ids, position_ids: [B, S]; past_mask: [B, T]; past_keys, past_values: [B, L, H, T, Dh];
    cross_keys, cross_values: [B, L, H, patches + 1, Dh]. Returns logits [B, S, V], new_keys and new_values
    [B, L, H, S, Dh].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        body = model.decoder.transformer
        self.words, self.positions, self.layers, self.norm = body.wte, body.wpe, body.h, body.ln_f
        self.head = model.decoder.lm_head

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_mask: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the new tokens; see the class for the shapes."""
        states = self.words(input_ids) + self.positions(position_ids)  # [B, S, D]
        visible = visible_positions(past_mask, input_ids.shape[1])
        new_keys, new_values = [], []
        for index, layer in enumerate(self.layers):
            attention, crossing = layer.attn, layer.crossattention
            projected = attention.c_attn(layer.ln_1(states)).chunk(3, dim=-1)
            query, key, value = (split_heads(part, attention.head_dim) for part in projected)
            seen = [(past_keys[:, index], past_values[:, index]), (key, value)]
            states = states + attention.c_proj(attend(query, seen, visible))
            query = split_heads(crossing.q_attn(layer.ln_cross_attn(states)), crossing.head_dim)
            crossed = attend(query, [(cross_keys[:, index], cross_values[:, index])], None)
            states = states + crossing.c_proj(crossed)
            states = states + layer.mlp(layer.ln_2(states))
            new_keys.append(key)
            new_values.append(value)
        return self.head(self.norm(states)), torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)


def open_vit_gpt2(checkpoint: Checkpoint) -> Captioner:
    """A `VisionEncoderDecoderModel` of ViT and GPT-2; it was not trained to go on from words. Raises `BadModel`."""
    from transformers import VisionEncoderDecoderModel
    from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

    config = read_config(checkpoint)
    vision, text = config.encoder, config.decoder
    kinds = f"{vision.model_type} and {text.model_type}"
    refuse(checkpoint, {f"the architectures {kinds}": kinds != "vit and gpt2"})
    odd_scale = text.scale_attn_by_inverse_layer_idx or not text.scale_attn_weights
    refuse(checkpoint, {"attention that is scaled otherwise": odd_scale})
    start_id = _start_id(checkpoint, config)
    eos_id = special_ids(checkpoint, "eos_token_id", config, text)[0]
    return Captioner(
        checkpoint=checkpoint,
        architecture="vit-gpt2",
        model_class=VisionEncoderDecoderModel,
        vision_graph=VitGraph,
        decoder_graph=Gpt2DecoderGraph,
        generating=_generating,
        pixels=pixels_of(checkpoint, vision.image_size, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, "bilinear"),
        words=words_of(
            checkpoint, bos_id=start_id, eos_id=eos_id, pad_id=eos_id, max_positions=text.max_position_embeddings
        ),
        cache=cache_of(text),
        num_crossed=num_states(vision),
        vocab_size=text.vocab_size,
    )


def _start_id(checkpoint: Checkpoint, config: Any) -> int:
    """What captions begin with; GPT-2's own bos where the checkpoint does not say."""
    told = (config.decoder_start_token_id, generation_settings(checkpoint).get("decoder_start_token_id"))
    default = special_ids(checkpoint, "bos_token_id", config, config.decoder)[0]
    return next((int(one) for one in told if one is not None), default)


def _generating(model: Any, pixel_values: Tensor, ids: Tensor) -> tuple[Any, dict[str, Tensor]]:
    return model, {"pixel_values": pixel_values, "decoder_input_ids": ids}
