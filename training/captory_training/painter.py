"""The painter: Stable Diffusion, small. A CLIP text encoder, a UNet2DCondition over 8x8x8 latents, the autoencoder.

Stages, each resumable: the text encoder learns to name what captions say (`painter_text`), the autoencoder's latents
are cached, the UNet learns to denoise them (v-prediction: Salimans and Ho 2022, arXiv 2202.00512; 10 % empty captions
for guidance: Ho and Salimans 2022, arXiv 2207.12598). The text also enters globally (`addition_embed_type="text"`:
attention-pooled states added to the time embedding), which teaches kinds much faster than cross attention alone.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from captory_training import autoencoder as autoencoders
from captory_training import painter_text
from captory_training import reader as readers
from captory_training.autoencoder import LATENT_CHANNELS, Autoencoder, cached_latents, to_images
from captory_training.checkpoint import seal
from captory_training.corpus import Corpus, Recipe, scene_labels
from captory_training.painter_text import HIDDEN_SIZE, StateCache, sample_caption
from captory_training.picto.captions import full_caption
from captory_training.trainer import Draw, Plan, Progress, Trainer, load_ema

LATENT_SIZE = 8
WIDTHS = (64, 128)
NUM_TIMESTEPS = 1000
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.018,  # 0.012 leaves so much signal at the last step that an 8x8 mean shows through
    "prediction_type": "v_prediction",
    "timestep_spacing": "linspace",
    "steps_offset": 1,
    "clip_sample": False,
}
OWN_SETTINGS: dict[str, Any] = {  # what the exporter is told of the family
    "name": "picto",
    "description": "A small family trained by captory_training from a procedural picture world alone. It captions,"
    " rewrites and paints 64-pixel pictures of that world;"
    " what it makes of real photographs is outside what it learnt.",
    "in_world_only": True,
    "defaults": {"steps": 16, "guidance_scale": 2.0, "sampler": "dpmpp-2m"},
}
MIDDLE_FAVOUR = 0.5  # 0: timesteps uniform; the middle ones come 1 / (1 - favour) times as often
MAX_CACHED_CAPTIONS = 300_000
FRESH_SEED = 1_000  # recipes with it draw scenes that no corpus holds
PROBE_SIZE = 128


def build() -> UNet2DConditionModel:
    """Return an untrained UNet: latents [B, 8, 8, 8], timestep [B], text states [B, 64, 128] to v [B, 8, 8, 8]."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",  # attention elsewhere too would cost two thirds as much again
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=4,  # the number of heads: diffusers' old name
        cross_attention_dim=HIDDEN_SIZE,
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def sample_timesteps(num: int, generator: torch.Generator) -> torch.Tensor:
    """Return timesteps [B], stratified over the batch, the middle noise levels (where shape is decided) more often."""
    place = (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num
    warped = place + MIDDLE_FAVOUR * torch.sin(2 * torch.pi * place) / (2 * torch.pi)
    return (warped * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)


def make_loss(unet: UNet2DConditionModel, states: StateCache, latents: NDArray[np.float16], recipe: Recipe) -> Any:
    """Return the mean squared error of v on one draw."""
    schedule, scene = DDPMScheduler(**SCHEDULE), lru_cache(maxsize=None)(recipe.scene)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([7, draw.step])
        clean = torch.from_numpy(latents[draw.indices].astype(np.float32))
        captions = [sample_caption(scene(int(index)), rng) for index in draw.indices]
        noise = torch.randn(clean.shape, generator=draw.generator)
        timesteps = sample_timesteps(len(clean), draw.generator)
        noisy, target = schedule.add_noise(clean, noise, timesteps), schedule.get_velocity(clean, noise, timesteps)
        return functional.mse_loss(unet(noisy, timesteps, states(captions)).sample, target), {}

    return loss


@torch.no_grad()
def paint(
    unet: UNet2DConditionModel,
    states: StateCache,
    autoencoder: Autoencoder,
    captions: list[str],
    *,
    steps: int = 12,
    guidance_scale: float = 2.5,
    seed: int = 0,
    scheduler: Any = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """Return one image a caption, [B, 3, 64, 64] in [-1, 1], by DPM-Solver++ (2M) unless another scheduler is given."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(captions), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator)
    images = []
    for start in range(0, len(captions), batch_size):
        texts, latents = captions[start : start + batch_size], noise[start : start + batch_size]
        solver = scheduler or DPMSolverMultistepScheduler(**{k: v for k, v in SCHEDULE.items() if k != "clip_sample"})
        solver.set_timesteps(steps)
        latents = latents * solver.init_noise_sigma
        condition, empty = states(texts), states([""]).expand(len(texts), -1, -1)
        for timestep in solver.timesteps:
            scaled = solver.scale_model_input(latents, timestep)
            if guidance_scale > 1:
                both = unet(torch.cat([scaled, scaled]), timestep, torch.cat([condition, empty])).sample
                guided, free = both.chunk(2)
                v = free + guidance_scale * (guided - free)
            else:
                v = unet(scaled, timestep, condition).sample
            latents = solver.step(v, timestep, latents).prev_sample
        images.append(autoencoder.decode(latents).clamp(-1, 1))
    return torch.cat(images)


def fresh_scenes(num: int, first: int = 0) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Return the full captions and the labels of scenes that no corpus holds."""
    recipe = Recipe(FRESH_SEED)
    scenes = [recipe.scene(first + index) for index in range(num)]
    labels = [scene_labels(scene) for scene in scenes]
    return [full_caption(scene) for scene in scenes], {key: np.array([row[key] for row in labels]) for key in labels[0]}


def make_probe(states: StateCache, autoencoder: Autoencoder, reader: readers.Reader, out: Path) -> Any:
    """Return the painter's probe: what the reader reads in fresh paintings, with a contact sheet."""
    captions, labels = fresh_scenes(PROBE_SIZE)

    def probe(unet: Any, progress: Progress) -> dict[str, float]:
        images = paint(unet, states, autoencoder, captions)
        contact_sheet(to_images(images[:64]), out / f"probe-{progress.step:06d}.png")
        return readers.accuracy(reader, images, labels)

    return probe


def contact_sheet(images: NDArray[np.uint8], path: Path, columns: int = 16) -> None:
    """Write images [N, H, W, 3] as one sheet, row by row."""
    rows = [np.concatenate(list(images[start : start + columns]), axis=1) for start in range(0, len(images), columns)]
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape])).save(path)


def save_pipeline(
    folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: AutoencoderKL, tokenizer: Path
) -> None:
    """Write the painter as a Stable Diffusion folder with fp16 weights, each model's own folder sealed."""
    unet.half().save_pretrained(folder / "unet")
    text_encoder.half().save_pretrained(folder / "text_encoder")
    vae.half().save_pretrained(folder / "vae")
    for part in ("unet", "text_encoder", "vae"):
        seal(folder / part)
    DDPMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    PreTrainedTokenizerFast.from_pretrained(tokenizer).save_pretrained(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "captory.json").write_text(json.dumps(OWN_SETTINGS, indent=2) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")],
    corpus: Annotated[Path, typer.Option(help="folder of the corpus")],
    vae: Annotated[Path, typer.Option(help="the autoencoder's `vae` folder")],
    reader: Annotated[Path, typer.Option(help="the reader's folder")],
    tokenizer: Annotated[Path, typer.Option(help="the tokenizer's folder")],
    max_minutes: float = 60.0,
    text_minutes: float = 4.0,
    seed: int = 0,
    steps: int | None = None,
    num_scenes: int = 80_000,
    single_share: float = 0.7,
) -> None:
    """Train the painter and write it to `OUT/painter` in the Hugging Face layout."""
    torch.set_num_threads(2)
    scenes = Corpus.open(corpus, num_scenes, single_share=single_share)
    words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    text_plan = Plan(seed=seed, learning_rate=1e-3, max_minutes=text_minutes, max_steps=1500, ema_decay=0.99)
    text_encoder = painter_text.train(words, Recipe(1, single_share=single_share), out / "text", text_plan)
    autoencoder = autoencoders.load(vae)
    latents = cached_latents(autoencoder, scenes.images, out / "latents.npy")

    torch.manual_seed(seed)
    unet, states = build(), StateCache(text_encoder, words, MAX_CACHED_CAPTIONS)
    loss, probe = (
        make_loss(unet, states, latents, scenes.recipe),
        make_probe(states, autoencoder, readers.load(reader), out),
    )
    plan = Plan(seed=seed, learning_rate=1.2e-3, max_minutes=max_minutes, max_steps=steps, warmup_steps=200)
    Trainer(unet, loss, len(scenes), plan, out / "unet", probe=probe).run()
    unet.load_state_dict(load_ema(out / "unet"))
    save_pipeline(out / "painter", unet, text_encoder, autoencoder.vae, tokenizer)


if __name__ == "__main__":
    typer.run(main)
