"""The painter's autoencoder: a diffusers AutoencoderKL behind a pixel-unshuffle by 4, 64 px to 8x8x8 latents.

On a CPU full-resolution convolutions with few channels are what costs (shared/performance.md); folding 4x4 pixels into
48 channels first leaves wide convolutions at 16x16 and 8x8 only. No adversarial loss: L1 + L2, and L1 on the finite
differences for crisp outlines. The decoder learns with noise on its latents, so a painter's small errors stay small.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch.nn import functional

from captory_training.corpus import Corpus
from captory_training.trainer import Draw, Plan, Trainer, load_ema

LATENT_CHANNELS = 8
SHUFFLE = 4  # pixels a side that one position of the AutoencoderKL holds
WIDTHS = (64, 96)
LATENT_NOISE = 0.1  # standard deviation of the training noise, in units of the latents' own
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 1.0


class Autoencoder(torch.nn.Module):
    """Images [B, 3, 64, 64] in [-1, 1] to latents [B, 8, 8, 8] and back."""

    def __init__(self, vae: AutoencoderKL, shuffle: int = SHUFFLE) -> None:
        """Wrap `vae`, which works on images folded by `shuffle`."""
        super().__init__()
        self.vae, self.shuffle = vae, shuffle

    def moments(self, images: torch.Tensor) -> Any:
        """Return the posterior distribution of the latents."""
        return self.vae.encode(functional.pixel_unshuffle(images, self.shuffle)).latent_dist

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean latents."""
        latents: torch.Tensor = self.moments(images).mean
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images, not clamped."""
        return functional.pixel_shuffle(self.vae.decode(latents).sample, self.shuffle)


def build(widths: tuple[int, ...] = WIDTHS, layers: int = 1, shuffle: int = SHUFFLE) -> Autoencoder:
    """Return an untrained autoencoder; `widths` has one entry a resolution, from 64/shuffle pixels down to 8."""
    vae = AutoencoderKL(
        in_channels=3 * shuffle**2,
        out_channels=3 * shuffle**2,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=64 // shuffle,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    vae.register_to_config(pixel_shuffle_factor=shuffle)
    return Autoencoder(vae, shuffle)


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 [B, H, W, 3] as float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """Return float [B, 3, H, W] in [-1, 1] as uint8 [B, H, W, 3]."""
    scaled = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    images: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().numpy()
    return images


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return L1 + L2 + the L1 of horizontal and vertical differences."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + EDGE_WEIGHT * edges


def make_loss(autoencoder: Autoencoder, images: NDArray[np.uint8]) -> Any:
    """Return the loss of one draw over `images` [N, 64, 64, 3]."""

    def loss(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        target = to_tensor(images[draw.indices])
        posterior = autoencoder.moments(target)
        latents = posterior.mean
        spread = latents.detach().std(dim=(0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=draw.generator)
        output = autoencoder.decode(latents + LATENT_NOISE * spread * noise)
        kl = posterior.kl().mean() / latents[0].numel()
        return reconstruction_loss(output, target) + KL_WEIGHT * kl, {"l1": functional.l1_loss(output, target).item()}

    return loss


@torch.no_grad()
def normalise(autoencoder: Autoencoder, images: NDArray[np.uint8]) -> None:
    """Fold the latents' mean and deviation a channel into the 1x1 convolutions around them: mean 0, deviation 1."""
    latents = encode_all(autoencoder, images)
    values = torch.from_numpy(latents.astype(np.float32))
    mean, std = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    quant, post = autoencoder.vae.quant_conv, autoencoder.vae.post_quant_conv
    channels = len(mean)
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def encode_all(autoencoder: Autoencoder, images: NDArray[np.uint8], batch_size: int = 250) -> NDArray[np.float16]:
    """Return the mean latents of all images, float16 [N, 8, 8, 8]."""
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([autoencoder.encode(to_tensor(batch)).numpy().astype(np.float16) for batch in batches])


def cached_latents(autoencoder: Autoencoder, images: NDArray[np.uint8], path: Path) -> NDArray[np.float16]:
    """Return the latents of all images, float16 [N, 8, 8, 8], encoding them the first time."""
    if not path.exists():
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, encode_all(autoencoder, images))
        os.replace(temporary, path)
    latents: NDArray[np.float16] = np.load(path)
    return latents


def load(folder: Path) -> Autoencoder:
    """Return the autoencoder in a Hugging Face folder, ready to use."""
    shuffle = json.loads((folder / "config.json").read_text())["pixel_shuffle_factor"]
    return Autoencoder(AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32), shuffle).eval()


def train(corpus: Corpus, out: Path, plan: Plan) -> Autoencoder:
    """Train to the end of the plan; write the normalised autoencoder to `out/vae` and return it."""
    torch.manual_seed(plan.seed)
    autoencoder = build()
    Trainer(autoencoder, make_loss(autoencoder, corpus.images), len(corpus), plan, out).run()
    autoencoder.load_state_dict(load_ema(out))
    autoencoder.eval()
    normalise(autoencoder, corpus.images[:4000])
    autoencoder.vae.save_pretrained(out / "vae")
    return autoencoder


def tune_decoder(autoencoder: Autoencoder, images: NDArray[np.uint8], out: Path, plan: Plan) -> None:
    """Go on training the decoder alone: the latents stay, so a painter may learn them at the same time."""
    latents = cached_latents(autoencoder, images, out / "latents.npy")
    autoencoder.vae.encoder.requires_grad_(False)
    autoencoder.vae.quant_conv.requires_grad_(False)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        target = to_tensor(images[draw.indices])
        clean = torch.from_numpy(latents[draw.indices].astype(np.float32))
        noisy = clean + LATENT_NOISE * torch.randn(clean.shape, generator=draw.generator)
        output = autoencoder.decode(noisy)
        return reconstruction_loss(output, target), {"l1": functional.l1_loss(output, target).item()}

    Trainer(autoencoder, loss, len(images), plan, out / "decoder").run()
    autoencoder.load_state_dict(load_ema(out / "decoder"))
    autoencoder.eval().vae.save_pretrained(out / "vae-tuned")


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")],
    corpus: Annotated[Path, typer.Option(help="folder of the corpus")],
    max_minutes: float = 26.0,
    decoder_minutes: Annotated[float, typer.Option(help="of training for the decoder alone, afterwards")] = 13.0,
    seed: int = 0,
    steps: int | None = None,
    num_scenes: int = 80_000,
    single_share: float = 0.7,
) -> None:
    """Train the autoencoder to `OUT/vae`, then its decoder further to `OUT/vae-tuned`."""
    torch.set_num_threads(2)
    plan = Plan(
        seed=seed, batch_size=32, learning_rate=1.5e-3, max_minutes=max_minutes, max_steps=steps, ema_decay=0.995
    )
    scenes = Corpus.open(corpus, num_scenes, single_share=single_share)
    autoencoder = train(scenes, out, plan)
    if decoder_minutes > 0:
        tune_decoder(autoencoder, scenes.images, out, replace(plan, learning_rate=1e-3, max_minutes=decoder_minutes))


if __name__ == "__main__":
    typer.run(main)
