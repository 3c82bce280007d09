"""Export the image side of the embedded family: painter and reader to a model repository, with the family file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from captory_engine.manifest import write_manifest
from captory_export.picto_reader import export_reader
from captory_export.stable_diffusion import export_painter

PREFIX = "picto_painter"
DESCRIPTION = (
    "A small family trained by captory_training from a procedural picture world alone. It captions, rewrites and paints"
    " 64-pixel pictures of that world; what it makes of real photographs is outside what it learnt."
)


def painter_section(pipeline: Path, *, steps: int, guidance_scale: float, sampler: str) -> dict[str, Any]:
    """Return the family file's painter section for a Stable Diffusion folder."""
    schedule = json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text())
    unet = json.loads((pipeline / "unet" / "config.json").read_text())
    vae = json.loads((pipeline / "vae" / "config.json").read_text())
    text = json.loads((pipeline / "text_encoder" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1) * vae.get("pixel_shuffle_factor", 1)
    kept = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    return {
        "architecture": "stable-diffusion",
        "text_encoder": f"{PREFIX}_text_encoder",
        "denoiser": f"{PREFIX}_unet",
        "vae_decoder": f"{PREFIX}_vae_decoder",
        "tokenizer": f"{PREFIX}_text_encoder/tokenizer.json",
        "max_tokens": text["max_position_embeddings"],
        "latent_channels": vae["latent_channels"],
        "vae_scale_factor": factor,
        "sizes": [[unet["sample_size"] * factor] * 2],
        "scaling_factor": vae["scaling_factor"],
        "schedule": {name: schedule[name] for name in kept},
        "defaults": {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler},
    }


def write_family(folder: Path, painter: dict[str, Any], sections: list[Path]) -> None:
    """Write `family.yaml` into the denoiser's folder, with the other engines' sections, and renew its manifest."""
    family: dict[str, Any] = {"name": "picto", "description": DESCRIPTION, "in_world_only": True}
    for section in sections:
        family |= yaml.safe_load(section.read_text(encoding="utf-8"))
    text = yaml.safe_dump({**family, "painter": painter}, sort_keys=False, width=110, default_flow_style=None)
    (folder / "family.yaml").write_text(text, encoding="utf-8")
    write_manifest(folder)


def main(
    painter: Annotated[Path, typer.Option(help="the painter's Stable Diffusion folder")],
    reader: Annotated[Path, typer.Option(help="the reader's folder")],
    out: Annotated[Path, typer.Option(help="the model repository to write to")],
    section: Annotated[list[Path] | None, typer.Option(help="another engine's section of the family file")] = None,
    steps: int = 16,
    guidance_scale: float = 2.0,
    sampler: str = "dpmpp-2m",
) -> None:
    """Export painter and reader."""
    torch.manual_seed(0)
    reports = export_painter(painter, out, PREFIX) | {"reader": export_reader(reader, out / "picto_reader")}
    defaults = painter_section(painter, steps=steps, guidance_scale=guidance_scale, sampler=sampler)
    write_family(out / f"{PREFIX}_unet", defaults, section or [])
    typer.echo(json.dumps(reports, indent=2))


if __name__ == "__main__":
    typer.run(main)
