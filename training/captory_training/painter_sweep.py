"""Which sampler, steps and guidance paint best? What the reader reads in fresh paintings, over a grid of settings."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from captory_training import autoencoder as autoencoders
from captory_training import reader as readers
from captory_training.autoencoder import to_images
from captory_training.painter import MAX_CACHED_CAPTIONS, SCHEDULE, contact_sheet, fresh_scenes, paint
from captory_training.painter_text import StateCache

FIRST_SCENE = 10_000  # beyond those that the probe watched during training
_COMMON = {name: value for name, value in SCHEDULE.items() if name not in ("clip_sample", "timestep_spacing")}
SAMPLERS: dict[str, Callable[[], Any]] = {
    "dpmpp-2m": lambda: DPMSolverMultistepScheduler(**_COMMON, timestep_spacing="linspace"),
    "euler": lambda: EulerDiscreteScheduler(**_COMMON, timestep_spacing="linspace"),
    "ddim": lambda: DDIMScheduler(**_COMMON, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=False),
}


def main(
    painter: Annotated[Path, typer.Option(help="the painter's Stable Diffusion folder")],
    reader: Annotated[Path, typer.Option(help="the reader's folder")],
    out: Annotated[Path, typer.Option(help="folder for sweep.csv and contact sheets; rows are added")],
    sampler: Annotated[list[str], typer.Option(help="dpmpp-2m, euler or ddim")] = ["dpmpp-2m"],  # noqa: B006
    guidance_scale: Annotated[list[float], typer.Option()] = [1, 1.5, 2, 3, 4, 5],  # noqa: B006
    steps: Annotated[list[int], typer.Option()] = [16],  # noqa: B006
    num_scenes: int = 256,
) -> None:
    """Paint fresh scenes from their full captions with every setting and write down what the reader reads."""
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    unet = UNet2DConditionModel.from_pretrained(painter / "unet", torch_dtype=torch.float32).eval()
    text_encoder = CLIPTextModel.from_pretrained(painter / "text_encoder", torch_dtype=torch.float32).eval()
    words = PreTrainedTokenizerFast.from_pretrained(painter / "tokenizer")
    states = StateCache(text_encoder, words, MAX_CACHED_CAPTIONS)
    autoencoder, oracle = autoencoders.load(painter / "vae"), readers.load(reader)
    captions, labels = fresh_scenes(num_scenes, FIRST_SCENE)
    for name, scale, count in ((n, g, s) for n in sampler for g in guidance_scale for s in steps):
        begin = time.monotonic()
        solver = SAMPLERS[name]()
        images = paint(unet, states, autoencoder, captions, steps=count, guidance_scale=scale, scheduler=solver)
        row = {"sampler": name, "guidance_scale": scale, "steps": count, "num_scenes": num_scenes}
        row |= readers.accuracy(oracle, images, labels) | {"seconds": round(time.monotonic() - begin, 1)}
        contact_sheet(to_images(images[:64]), out / f"{name}-{scale}-{count}.png")
        _append(out / "sweep.csv", row)
        typer.echo(row)


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    typer.run(main)
