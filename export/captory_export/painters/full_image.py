"""One image from first noise to pixels, once by the checkpoint's modules and once by the exported graphs.

Either side has one module or graph in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.step import advance, guide
from captory_engine.family import Painter
from captory_engine.stages import SIZED, schedule_of, size_condition, zero_text
from captory_engine.tokenizer import PromptTokenizer, Tokenizer
from captory_export.decoding import open_graph
from captory_export.exportable import Graph

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]
Size = tuple[int, int]  # width and height in pixels
PROMPTS = ("a photo of a red mug on a table", "")  # what is painted, and what it is guided away from
NUM_STEPS = 2
SEED = 7


def compare_images(
    painter: Painter, denoiser: str, graph: Callable[[str], Graph], folders: Mapping[str, Path]
) -> dict[str, Any]:
    """How far an image of the models in `folders` is from that of the checkpoint's modules, which `graph` loads.

    Returns the figures of the worst of the sizes that are painted.
    """
    ids = prompt_ids(painter, folders["text_encoder"])

    def figures(size: Size) -> dict[str, Any]:
        wanted = paint(OneAtATime(lambda suffix: run_module(graph(suffix))), painter, denoiser, ids, size)
        got = paint(OneAtATime(lambda suffix: run_model(folders[suffix])), painter, denoiser, ids, size)
        return {
            "image": f"{size[0]}x{size[1]}, {NUM_STEPS} steps of {painter.defaults.sampler}, seed {SEED}",
            "psnr_db": psnr_db(wanted, got),
            "max_abs_difference": float(np.abs(wanted - got).max()),
        }

    sizes = painted_sizes(painter.sizes)
    worst = min(map(figures, sizes), key=lambda one: float(one["psnr_db"]))
    return {**worst, "sizes": ", ".join(f"{width}x{height}" for width, height in sizes)}


def painted_sizes(sizes: Sequence[Size]) -> list[Size]:
    """The first, the smallest and the largest: graphs of free sizes hold in between as well."""
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return list(dict.fromkeys((sizes[0], by_area[0], by_area[-1])))


class OneAtATime:
    """Runs a painter's graphs by suffix, and holds only the last that was asked for."""

    def __init__(self, open_graph: Callable[[str], Run]) -> None:
        self._open = open_graph
        self._held: tuple[str, Run] | None = None

    def __call__(self, suffix: str, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name."""
        if self._held is None or self._held[0] != suffix:
            self._held = None  # frees it before the next is loaded
            self._held = suffix, self._open(suffix)
        return self._held[1](inputs)


def paint(
    run: Callable[[str, Arrays], dict[str, Array]], painter: Painter, denoiser: str, ids: Arrays, size: Size
) -> NDArray[np.float32]:
    """The image [3, H, W] of the first row of `ids`, guided away from the second; clamped to -1..1."""
    width, height = size
    conditions = _conditions(painter, run("text_encoder", ids), size)
    plan = make_plan(schedule_of(painter), painter.defaults.sampler, NUM_STEPS, guided=True)
    scale = np.array([max(1.5, painter.defaults.guidance_scale)], np.float32)
    shape = painter.latent_channels, height // painter.vae_scale_factor, width // painter.vae_scale_factor
    x = gaussian_noise(SEED, shape)[None] * plan.start_scale
    denoised = np.zeros_like(x)
    for step in range(plan.num_steps):
        here = plan.coefficients[step : step + 1]
        sample = np.repeat(x * here[0, 0], 2, axis=0)
        inputs = {"sample": sample, "timestep": np.repeat(plan.timesteps[step], 2), **conditions}
        output = run(denoiser, inputs)["out_sample"]
        x, denoised = advance(x, guide(output[:1], output[1:], scale), denoised, here)
    latents = x * plan.final_scale / np.float32(painter.scaling_factor) + np.float32(painter.shift_factor)
    image: NDArray[np.float32] = run("vae_decoder", {"latent_sample": latents})["sample"][0].clip(-1, 1)
    return image


def _conditions(painter: Painter, texts: Arrays, size: Size) -> Arrays:
    """What the denoiser is told, both rows, as the engine puts it together."""
    rows = [{name: texts[output][row] for name, output in painter.conditions.items()} for row in range(len(PROMPTS))]
    if painter.empty_is_zero:
        rows[1] = zero_text(painter, rows[1])
    if painter.architecture == SIZED:
        rows = [{**row, **size_condition(*size)} for row in rows]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def psnr_db(wanted: Array, got: Array) -> float:
    """Peak signal-to-noise ratio of images in -1..1: 120 where they are equal, 0 where one is not finite."""
    error = float(np.square(wanted - got, dtype=np.float64).mean())
    if not np.isfinite(error):
        return 0.0
    return 120.0 if error == 0 else min(120.0, 10 * float(np.log10(4 / error)))


def prompt_ids(painter: Painter, folder: Path) -> dict[str, Array]:
    """Both prompts as the text encoder, whose tokenizers lie in the folder, takes them: [2, T] for every input."""
    first = {
        "input_ids": PromptTokenizer(_tokenizer(folder, painter.tokenizer), painter.max_tokens, painter.pad_id),
    }
    further = {
        text.input: PromptTokenizer(_tokenizer(folder, text.tokenizer), text.max_tokens, text.pad_id)
        for text in painter.further_text
    }
    return {
        name: np.stack([tokenizer.encode(prompt).ids for prompt in PROMPTS])
        for name, tokenizer in (first | further).items()
    }


def _tokenizer(folder: Path, file: str) -> Tokenizer:
    return Tokenizer(folder / Path(file).name)


def run_module(graph: Graph) -> Run:
    """What runs a graph's module on arrays."""

    def run(inputs: Arrays) -> dict[str, Array]:
        with torch.no_grad():
            results = graph.module(**{name: torch.from_numpy(np.array(value)) for name, value in inputs.items()})
        results = results if isinstance(results, tuple) else (results,)
        return {name: value.numpy() for name, value in zip(graph.outputs, results, strict=True)}

    return run


def run_model(folder: Path) -> Run:
    """What runs a model's folder."""
    session: Any = open_graph(folder)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))
