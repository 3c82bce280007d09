"""A Stable-Diffusion-type painter as ONNX graphs: text encoder, UNet with one timestep a row, VAE decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from captory_export.graphs import export_graph, flops_per_row
from captory_export.repository import MAX_BATCH_SIZE, Port, to_json, write_model

TOLERANCE = 1e-3
PARITY_BATCHES = (1, 2, 3, 5, 8, 16)


class TextEncoderGraph(nn.Module):
    """`CLIPTextModel`: input_ids [B, T] to last_hidden_state [B, T, D]."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the states of the last layer, normalised."""
        states: Tensor = self.text_encoder(input_ids).last_hidden_state
        return states


class UNetGraph(nn.Module):
    """`UNet2DConditionModel`: sample [B, C, H, W], timestep [B], encoder_hidden_states [B, T, D] to [B, C, H, W]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Return what the UNet predicts (epsilon or v, as it was trained)."""
        output: Tensor = self.unet(sample, timestep, encoder_hidden_states).sample
        return output


class VaeDecoderGraph(nn.Module):
    """`AutoencoderKL`: latent_sample [B, C, h, w], scaled, to sample [B, 3, H, W] in about [-1, 1].

    A `pixel_shuffle_factor` in the autoencoder's config unfolds its output channels into pixels.
    """

    def __init__(self, vae: Any, pixel_shuffle_factor: int = 1) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        self.scaling_factor: float = vae.config.scaling_factor
        self.pixel_shuffle_factor = pixel_shuffle_factor

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Return the pixels, not clamped."""
        folded = self.decoder(self.post_quant_conv(latent_sample / self.scaling_factor))
        return functional.pixel_shuffle(folded, self.pixel_shuffle_factor)


class Graph(NamedTuple):
    """A module to export, with the names and example values (two rows) of what goes in, and its outputs' names."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    reshaped: Sequence[str] = ()  # inputs that are [B] in the graph and [B, 1] on the wire


def painter_graphs(text_encoder: Any, unet: Any, vae: Any, pixel_shuffle_factor: int = 1) -> dict[str, Graph]:
    """Return the three graphs of a painter by role: text_encoder, denoiser, vae_decoder."""
    latents = torch.randn(2, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    num_tokens, width = text_encoder.config.max_position_embeddings, text_encoder.config.hidden_size
    ids = torch.randint(text_encoder.config.vocab_size, (2, num_tokens))
    conditions = {"timestep": torch.tensor([900.0, 20.0]), "encoder_hidden_states": torch.randn(2, num_tokens, width)}
    vae_decoder = VaeDecoderGraph(vae, pixel_shuffle_factor)
    return {
        "text_encoder": Graph(TextEncoderGraph(text_encoder), {"input_ids": ids}, ["last_hidden_state"]),
        "denoiser": Graph(UNetGraph(unet), {"sample": latents, **conditions}, ["out_sample"], ["timestep"]),
        "vae_decoder": Graph(vae_decoder, {"latent_sample": latents}, ["sample"]),
    }


def export(graph: Graph, folder: Path, *, files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """Write a graph as a Triton model folder with its parity report and return the report.

    Raises `ValueError` when ONNX Runtime differs from torch by more than `TOLERANCE`.
    """
    path = folder / "1" / "model.onnx"
    axes = {name: {0: "batch"} for name in graph.inputs}
    rewrites = export_graph(graph.module, graph.inputs, graph.outputs, axes, path)
    flops = flops_per_row(graph.module, graph.inputs)
    report = {**check(graph, path), "rewrites": rewrites, "flops_per_row": flops}
    if report["max_abs_difference"] > TOLERANCE:
        raise ValueError(f"{folder.name} differs from torch by {report['max_abs_difference']}")
    inputs = [_port(name, value, name in graph.reshaped) for name, value in graph.inputs.items()]
    with torch.no_grad():
        results = _as_tuple(graph.module(**graph.inputs))
    outputs = [_port(name, value, False) for name, value in zip(graph.outputs, results, strict=True)]
    write_model(folder, path, inputs, outputs, MAX_BATCH_SIZE, files={**(files or {}), "parity.json": to_json(report)})
    return report


@torch.no_grad()
def check(graph: Graph, path: Path) -> dict[str, Any]:
    """Return the largest and mean absolute difference between torch and ONNX Runtime over several batch sizes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in PARITY_BATCHES:
        feed = {name: _example(value, batch) for name, value in graph.inputs.items()}
        expected = _as_tuple(graph.module(**feed))
        found = session.run(list(graph.outputs), {name: value.numpy() for name, value in feed.items()})
        differences += [np.abs(a.numpy() - b).ravel() for a, b in zip(expected, found, strict=True)]
    joined = np.concatenate(differences)
    return {
        "batch_sizes": list(PARITY_BATCHES),
        "max_abs_difference": float(joined.max()),
        "mean_abs_difference": float(joined.mean()),
        "tolerance": TOLERANCE,
    }


def _example(value: Tensor, batch: int) -> Tensor:
    """Return `batch` rows of fresh values like `value`: as spread, and within its range where it is integers."""
    shape = (batch, *value.shape[1:])
    if not value.is_floating_point():
        return torch.randint(int(value.max()), shape)
    return torch.rand(shape) * 999 if value.ndim == 1 else torch.randn(shape)


def _port(name: str, value: Tensor, reshaped: bool) -> Port:
    data_type = "TYPE_FP32" if value.is_floating_point() else "TYPE_INT64"
    return Port(name, data_type, (1,), ()) if reshaped else Port(name, data_type, tuple(value.shape[1:]))


def _as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def export_painter(pipeline: Path, repository: Path, prefix: str = "picto_painter") -> dict[str, dict[str, Any]]:
    """Export a Stable Diffusion folder to `PREFIX_text_encoder`, `PREFIX_unet` and `PREFIX_vae_decoder`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(pipeline / "vae", torch_dtype=torch.float32).eval()
    shuffle = json.loads((pipeline / "vae" / "config.json").read_text()).get("pixel_shuffle_factor", 1)
    names = {"text_encoder": "text_encoder", "denoiser": "unet", "vae_decoder": "vae_decoder"}
    tokenizer = {"tokenizer.json": (pipeline / "tokenizer" / "tokenizer.json").read_bytes()}
    return {
        role: export(graph, repository / f"{prefix}_{names[role]}", files=tokenizer if role == "text_encoder" else None)
        for role, graph in painter_graphs(text_encoder, unet, vae, shuffle).items()
    }
