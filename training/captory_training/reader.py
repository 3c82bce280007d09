"""The oracle of the picture world: a small convolutional network that reads a picture's attributes back.

It is trained on true scenes only, with blur, noise and colour shifts, so it reads slightly blurred pictures fairly.
No model of the family is trained against it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from captory_training.autoencoder import to_tensor
from captory_training.corpus import ATTRIBUTES, SIZE_PX, Corpus
from captory_training.trainer import Draw, Plan, Trainer, load_ema

WIDTHS = (32, 64, 64, 96, 96, 128)
STRIDES = (2, 2, 1, 2, 1, 2)
MAX_BLUR_PX = 1.2
MAX_NOISE = 0.15  # of the range [-1, 1]
MAX_COLOUR_SHIFT = 0.12


class Reader(nn.Module):
    """Images [B, 3, 64, 64] in [-1, 1] to logits [B, n] for each attribute."""

    def __init__(self, classes: dict[str, int] | None = None) -> None:
        """Make an untrained reader; `classes` gives the number of values of each attribute."""
        super().__init__()
        self.classes = classes or {name: len(values) for name, values in ATTRIBUTES.items()}
        layers: list[nn.Module] = []
        for before, width, stride in zip((3, *WIDTHS), WIDTHS, STRIDES, strict=False):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.head = nn.Linear(WIDTHS[-1] * 16, sum(self.classes.values()))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits, in the order of `classes`."""
        return tuple(self.head(self.features(pixel_values)).split(list(self.classes.values()), dim=-1))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, add noise to and tint images, each image by an amount of its own that may be nothing."""
    num = len(images)

    def amount(limit: float) -> torch.Tensor:
        return (
            limit
            * torch.rand(num, 1, 1, 1, generator=generator)
            * (torch.rand(num, 1, 1, 1, generator=generator) < 0.6)
        )

    blurred = _blur(images, amount(MAX_BLUR_PX))
    noise = torch.randn(images.shape, generator=generator) * amount(MAX_NOISE)
    tint = (2 * torch.rand(num, 3, 1, 1, generator=generator) - 1) * amount(MAX_COLOUR_SHIFT)
    return (blurred + noise + tint).clamp(-1, 1)


def _blur(images: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
    """Blur each image [3, H, W] by its own Gaussian, seven pixels wide."""
    offsets = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma_px.reshape(-1, 1).clamp(min=0.05) ** 2))  # [B, 7]
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]  # [3 B, 1, 7]
    planes = functional.pad(images.reshape(1, -1, *images.shape[2:]), (3, 3, 3, 3), mode="replicate")
    rows = functional.conv2d(planes, kernel[:, :, None, :], groups=len(kernel))
    return functional.conv2d(rows, kernel[:, :, :, None], groups=len(kernel)).reshape(images.shape)


def make_loss(reader: Reader, corpus: Corpus) -> Any:
    """Return the sum of the attributes' cross entropies on one draw."""
    labels = [torch.from_numpy(corpus.labels[name]) for name in reader.classes]

    def loss(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        logits = reader(augment(to_tensor(corpus.images[draw.indices]), draw.generator))
        truth = [values[draw.indices] for values in labels]
        losses = [functional.cross_entropy(out, wanted) for out, wanted in zip(logits, truth, strict=True)]
        accuracy = (logits[0].argmax(-1) == truth[0]).float().mean()
        return torch.stack(losses).sum(), {"kind_accuracy": accuracy.item()}

    return loss


@torch.no_grad()
def read(reader: Reader, images: torch.Tensor, batch_size: int = 128) -> dict[str, NDArray[np.int64]]:
    """Return the attribute indices read from images [N, 3, 64, 64], [N] each."""
    outputs = [reader(batch) for batch in images.split(batch_size)]
    return {
        name: torch.cat([logits[place] for logits in outputs]).argmax(-1).numpy()
        for place, name in enumerate(reader.classes)
    }


def accuracy(reader: Reader, images: torch.Tensor, labels: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Return the share of images [N, 3, 64, 64] read as labelled, for each attribute."""
    return {name: float((values == labels[name]).mean()) for name, values in read(reader, images).items()}


def save(reader: Reader, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` (fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "picto-reader",
        "image_size_px": SIZE_PX,
        "widths": WIDTHS,
        "strides": STRIDES,
        "num_features": reader.head.in_features,
        "labels": {name: list(values) for name, values in ATTRIBUTES.items()},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    half = {name: v.half() if v.is_floating_point() else v for name, v in reader.state_dict().items()}
    save_file(half, folder / "model.safetensors")


def load(folder: Path) -> Reader:
    """Return the reader in `folder`, ready to use."""
    labels = json.loads((folder / "config.json").read_text())["labels"]
    reader = Reader({name: len(values) for name, values in labels.items()})
    weights = load_file(folder / "model.safetensors")
    reader.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in weights.items()})
    return reader.eval()


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")],
    corpus: Annotated[Path, typer.Option(help="folder of the corpus")],
    max_minutes: float = 6.0,
    seed: int = 0,
    steps: int | None = None,
    num_scenes: int = 80_000,
    single_share: float = 0.7,
) -> None:
    """Train the reader and print its accuracy on fresh scenes."""
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    reader, scenes = Reader(), Corpus.open(corpus, num_scenes, single_share=single_share)
    plan = Plan(seed=seed, learning_rate=2e-3, max_minutes=max_minutes, max_steps=steps, ema_decay=0.99)
    Trainer(reader, make_loss(reader, scenes), len(scenes), plan, out).run()
    reader.load_state_dict(load_ema(out))
    save(reader, out / "reader")
    fresh = Corpus.open(out / "fresh", 2000, seed=seed + 1)
    typer.echo(json.dumps(accuracy(load(out / "reader"), to_tensor(fresh.images), fresh.labels)))


if __name__ == "__main__":
    typer.run(main)
