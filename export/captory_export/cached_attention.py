"""Attention over a cache that the caller owns: the few lines that every exported token decoder shares."""

from collections.abc import Sequence

import torch
from torch import Tensor


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """Split the last axis into heads: [B, S, H * Dh] to [B, H, S, Dh]."""
    return states.reshape(*states.shape[:-1], -1, head_dim).transpose(1, 2)


def visible_positions(past_mask: Tensor, num_new: int) -> Tensor:
    """Say what each new token sees: valid past positions, itself and the new tokens before it.

    past_mask: [B, T], 1 where the slot position holds a token. Returns bool [B, 1, S, T + S].
    """
    past = (past_mask > 0.5)[:, None, None, :].expand(-1, 1, num_new, -1)
    order = torch.arange(num_new, device=past_mask.device)
    causal = (order[:, None] >= order[None, :])[None, None].expand(past_mask.shape[0], 1, -1, -1)
    return torch.cat([past, causal], dim=-1)


def attend(query: Tensor, seen: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention with grouped heads (Ainslie et al. 2023); a hidden position weighs exactly 0.

    query: [B, H, S, Dh]; `seen`: keys and values, each [B, Hkv, T, Dh], in parts that follow one another, so that a
    cache is never copied to append to it; H a multiple of Hkv; visible: bool [B, 1, S, T], T over all parts.
    Returns [B, S, H * Dh]. What stands at a hidden position never matters, so long as it is finite.
    """
    batch, num_kv_heads, _, head_dim = seen[0][0].shape
    grouped = query.reshape(batch, num_kv_heads, -1, query.shape[2], head_dim)  # [B, Hkv, G, S, Dh]
    parts = [grouped @ keys[:, :, None].transpose(-1, -2) * head_dim**-0.5 for keys, _ in seen]
    scores = torch.cat(parts, dim=-1)  # [B, Hkv, G, S, T]
    if visible is not None:
        scores = torch.where(visible[:, None], scores, -1e30)
    weights = scores.softmax(dim=-1).split([values.shape[2] for _, values in seen], dim=-1)
    context = sum((w @ values[:, :, None] for w, (_, values) in zip(weights, seen, strict=True)), torch.tensor(0.0))
    return context.flatten(1, 2).transpose(1, 2).flatten(2)
