"""Modules of a checkpoint written so that their graphs do less work; they compute the same function."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from captory_export.cached_attention import split_heads


def lean(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose attention and text pooling are the ones below; everything else is untouched."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TextTimeEmbedding
    from transformers import PreTrainedModel

    result, processor = copy.deepcopy(module), cast(Any, BareAttention())
    part: Any
    for part in result.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
        elif isinstance(part, TextTimeEmbedding):
            part.add_module("pool", LeanPooling(part.pool))
        elif isinstance(part, Attention) and _is_bare(part):
            part.set_processor(processor)
    return result


class LeanPooling(nn.Module):
    """diffusers' `AttentionPooling`: [B, T, D] to [B, D], one query over T + 1 states.

    With a single query the projection of keys moves to its side, q (W x) = (q W) x, and that of values behind the
    weighted sum, so neither is done for every state. A key's bias adds the same to all scores and falls away.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, states: Tensor) -> Tensor:
        """Return what the query, the mean of the states, sees."""
        pool = self.pool
        query_state = states.mean(dim=1, keepdim=True) + pool.positional_embedding  # [B, 1, D]
        seen = torch.cat([query_state, states], dim=1)  # [B, T + 1, D]
        to_keys, to_values = (p.weight.unflatten(0, (pool.num_heads, -1)) for p in (pool.k_proj, pool.v_proj))
        query = split_heads(pool.q_proj(query_state), pool.dim_per_head) * pool.dim_per_head**-0.5  # [B, H, 1, Dh]
        scores = (query @ to_keys).squeeze(2) @ seen.transpose(1, 2)  # [B, H, T + 1]
        weighted = scores.softmax(dim=-1) @ seen  # [B, H, D]
        pooled: Tensor = (weighted[:, :, None] @ to_values.transpose(1, 2)).flatten(1) + pool.v_proj.bias
        return pooled


class BareAttention:
    """A processor for diffusers' attention in plain nodes: torch's fused attention exports to more of them."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from states [B, S, D] to the text's [B, T, D'], or to themselves."""
        assert attention_mask is None, "an exported graph takes no mask"
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (split_heads(states, states.shape[-1] // attn.heads) for states in projected)
        weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        attended: Tensor = attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
        return attended


def _is_bare(attn: Any) -> bool:
    """Whether an attention layer of diffusers does nothing beyond attending."""
    norms = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    bare = norms == (None,) * 5 and attn.added_kv_proj_dim is None and not attn.residual_connection
    return bare and attn.rescale_output_factor == 1.0
