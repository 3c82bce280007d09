"""What the graphs of all token decoders have in common: one step over new tokens and a cache that the caller owns."""

from __future__ import annotations

import torch
from torch import nn

from captory_export.decoding import CacheShape
from captory_export.exportable import Graph
from captory_export.graphs import CACHE_OUTPUTS, PAST_AXES, TOKEN_AXES

CROSS = ("cross_keys", "cross_values")
NUM_PAST = 5  # positions in the examples


def step_graph(
    module: nn.Module, cache: CacheShape, *, vocab_size: int, max_positions: int, num_crossed: int = 0
) -> Graph:
    """A decoder's graph; with `num_crossed`, it also attends to so many positions of cross keys and values.

    The examples reach up to the last token and position, since checks draw within their range.
    """
    num_layers, num_kv_heads, head_dim = cache
    past = (2, num_layers, num_kv_heads, NUM_PAST, head_dim)
    crossed = (2, num_layers, num_kv_heads, num_crossed, head_dim)
    inputs = {
        "input_ids": torch.tensor([[0, 1, vocab_size - 1]] * 2),
        "position_ids": torch.tensor([[0, 1, max_positions - 1]] * 2),
        "past_mask": torch.arange(NUM_PAST).remainder(2).float().repeat(2, 1),
        "past_keys": torch.randn(past),
        "past_values": torch.randn(past),
        **({name: torch.randn(crossed) for name in CROSS} if num_crossed else {}),
    }
    return Graph(module, inputs, CACHE_OUTPUTS, {**TOKEN_AXES, **PAST_AXES})
