"""BLIP-2 captioners over OPT (Li et al. 2023, arXiv 2301.12597) as two graphs: image encoder, and token decoder.

OPT reads the image as a prefix of embeddings. Its keys and values of that prefix do not depend on the words that
follow, so the image encoder computes them, once an image, and they travel as other captioners' cross keys and values
do; the decoder attends to them before its own past.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captory_export.cached_attention import attend, split_heads, visible_positions

POSITION_OFFSET = 2  # of OPT's learned positions


class Blip2VisionGraph(nn.Module):
    """pixel_values [B, 3, size, size] to cross_keys and cross_values, each [B, L, H, queries, Dh]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.queries = model.vision_model, model.query_tokens
        self.qformer, self.project = model.qformer, model.language_projection
        self.language = OptLayers(model.language_model.model.decoder)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images, ask the queries, and run the language model over the answers."""
        states = self.vision(pixel_values).last_hidden_state
        queries = self.queries.expand(states.shape[0], -1, -1)
        answers = self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        prefix = self.project(answers)  # [B, queries, D]
        batch, length = prefix.shape[:2]
        order = torch.arange(length, device=prefix.device)
        visible = (order[:, None] >= order[None, :])[None, None].expand(batch, 1, -1, -1)
        _, keys, values = self.language(prefix, order.expand(batch, -1), visible, [])
        return keys, values


class OptLayers(nn.Module):
    """The layers of OPT (Zhang et al. 2022, arXiv 2205.01068), of the kind that normalises before each block."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.positions = decoder.embed_positions
        self.layers, self.norm = decoder.layers, decoder.final_layer_norm

    def forward(
        self, states: Tensor, position_ids: Tensor, visible: Tensor, seen: list[list[tuple[Tensor, Tensor]]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, S, D] of the last layer, and the new keys and values [B, L, H, S, Dh].

        `seen` has, for each layer, the keys and values that come before; visible: bool [B, 1, S, T], T over all.
        """
        states = states + nn.functional.embedding(position_ids + POSITION_OFFSET, self.positions.weight)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            attention = layer.self_attn
            normed = layer.self_attn_layer_norm(states)
            query, key, value = (
                split_heads(project(normed), attention.head_dim)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            before = seen[index] if seen else []
            states = states + attention.out_proj(attend(query, [*before, (key, value)], visible))
            states = states + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(states))))
            keys.append(key)
            values.append(value)
        return self.norm(states), torch.stack(keys, dim=1), torch.stack(values, dim=1)


class Blip2DecoderGraph(nn.Module):
    """One step of OPT behind an image over S new tokens and a cache of T positions.

    input_ids, position_ids: [B, S], counted behind the image; past_mask: [B, T]; past_keys, past_values:
    [B, L, H, T, Dh]; cross_keys, cross_values: [B, L, H, queries, Dh]. Returns logits [B, S, V], new_keys and
    new_values [B, L, H, S, Dh].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.language_model.model.decoder
        self.words, self.language = decoder.embed_tokens, OptLayers(decoder)
        self.head = model.language_model.lm_head

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
        num_queries = cross_keys.shape[3]
        image = torch.ones_like(past_mask[:, :1]).expand(-1, num_queries)
        visible = visible_positions(torch.cat([image, past_mask], dim=1), input_ids.shape[1])
        seen = [
            [(cross_keys[:, index], cross_values[:, index]), (past_keys[:, index], past_values[:, index])]
            for index in range(cross_keys.shape[1])
        ]
        states, keys, values = self.language(self.words(input_ids), position_ids + num_queries, visible, seen)
        return self.head(states), keys, values
