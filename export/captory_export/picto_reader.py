"""The picture world's oracle as an ONNX graph, rebuilt from its folder (`config.json`, `model.safetensors`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captory_export.exportable import Graph, Part
from captory_export.model_folders import export_part
from captory_export.precision import Precision
from captory_export.repository import to_json


class ReaderGraph(nn.Module):
    """pixel_values [B, 3, 64, 64] in [-1, 1] to one tensor of logits [B, n] for each attribute."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.sizes = [len(values) for values in config["labels"].values()]
        layers: list[nn.Module] = []
        widths = config["widths"]
        for before, width, stride in zip((3, *widths), widths, config["strides"], strict=False):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(config["num_features"], sum(self.sizes))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, in the order of the labels."""
        return tuple(self.head(self.features(pixel_values)).split(self.sizes, dim=-1))


def export_reader(source: Path, folder: Path) -> dict[str, Any]:
    """Write the reader in `source` as a Triton model folder with its `labels.json`; return the parity report."""
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    graph = ReaderGraph(config)
    graph.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in weights.items()})
    inputs = {"pixel_values": torch.randn(2, 3, config["image_size_px"], config["image_size_px"])}
    labels = {"labels.json": to_json(config["labels"])}
    part = Part("reader", Graph(graph.eval(), inputs, list(config["labels"])), labels)
    return export_part(part, folder, Precision.FP32)
