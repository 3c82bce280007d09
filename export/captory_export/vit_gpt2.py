"""ViT-GPT2 captioners (transformers' `VisionEncoderDecoderModel`) as two graphs: image encoder, and token decoder.

The image encoder also projects the cross-attention keys and values, so they are computed once an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captory_export.cached_attention import attend, split_heads, visible_positions


class VitGraph(nn.Module):
    """pixel_values [B, 3, size, size] to cross_keys and cross_values, each [B, L, H, patches + 1, Dh]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.project = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.layers = model.decoder.transformer.h

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images and project what the decoder will attend to."""
        states = self.project(self.encoder(pixel_values).last_hidden_state)
        keys, values = [], []
        for layer in self.layers:
            attention = layer.crossattention
            key, value = attention.c_attn(states).split(attention.split_size, dim=-1)
            keys.append(split_heads(key, attention.head_dim))
            values.append(split_heads(value, attention.head_dim))
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
            attention = layer.attn
            projected = attention.c_attn(layer.ln_1(states)).split(attention.split_size, dim=-1)
            query, key, value = (split_heads(part, attention.head_dim) for part in projected)
            seen = [(past_keys[:, index], past_values[:, index]), (key, value)]
            states = states + attention.c_proj(attend(query, seen, visible))
            crossing = layer.crossattention
            query = split_heads(crossing.q_attn(layer.ln_cross_attn(states)), crossing.head_dim)
            crossed = attend(query, [(cross_keys[:, index], cross_values[:, index])], None)
            states = states + crossing.c_proj(crossed)
            states = states + layer.mlp(layer.ln_2(states))
            new_keys.append(key)
            new_values.append(value)
        return self.head(self.norm(states)), torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)
