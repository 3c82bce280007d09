"""A denoiser of Stable Diffusion 1.5's architecture and size, with random weights, as a model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from captory_export.graphs import export_graph, read_ports
from captory_export.painters.stable_diffusion import unet_graph
from captory_export.repository import write_model

SIDE, NUM_CHANNELS, NUM_TOKENS = 64, 4, 77
MAX_ROWS = 16


def write_twin(folder: Path) -> None:
    """Write the model named as the folder."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    graph = unet_graph(unet, NUM_TOKENS, torch.randn(2, NUM_CHANNELS, SIDE, SIDE), {})
    path = folder / "1" / "model.onnx"
    export_graph(graph, path, for_cpu=False)
    write_model(folder, *read_ports(graph, path), MAX_ROWS)
