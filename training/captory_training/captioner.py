"""The captioner of the embedded family: a small BLIP (Li et al. 2022, arXiv 2201.12086) trained from scratch.

A prefix token after bos asks for a short or a long caption (Segalis et al. 2023, arXiv 2310.16656). A vision
transformer learns shapes slowly from captions alone, so throw-away linear heads also read the scene's attributes from
the class token, and kind and colour from every patch; they are not saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name)
from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

from captory_training.checkpoint import seal
from captory_training.corpus import ATTRIBUTES, Corpus, scene_labels
from captory_training.picto.captions import caption
from captory_training.picto.layout import place
from captory_training.picto.reading import read_caption
from captory_training.picto.render import render
from captory_training.picto.scene import Scene, sample_scene
from captory_training.tokenizer import (
    BOS_ID,
    EOS_ID,
    LONG_ID,
    PAD_ID,
    SHORT_ID,
    VOCAB_SIZE,
    decode,
    encode,
    load_tokenizer,
)
from captory_training.trainer import Draw, Plan, Progress, Trainer

IMAGE_SIZE_PX = 64
PATCH_PX = 8
GRID = IMAGE_SIZE_PX // PATCH_PX
WIDTH = 128
NUM_HEADS = 4
MAX_POSITIONS = 64  # prefix, caption and eos; captions of the world end before 48
MAX_NEW_TOKENS = 48
PREFIXES = {"short": [BOS_ID, SHORT_ID], "long": [BOS_ID, LONG_ID]}
IGNORED = -100  # the label that cross entropy skips
PATCH_ATTRIBUTES = ("kind", "colour")
MAX_SHIFT_PX = 2
FRESH_SEED = 3 << 40  # scenes for evaluation, apart from the corpus' and the tokenizer's


class Captioner(nn.Module):
    """The model, and beside it the heads that help the image encoder to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.blip = build_blip()
        sizes = {name: len(values) for name, values in ATTRIBUTES.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()})
        self.patch_heads = nn.ModuleDict({name: nn.Linear(WIDTH, sizes[name] + 1) for name in PATCH_ATTRIBUTES})

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the caption loss over `input_ids` [B, S] and the image encoder's states [B, 1 + patches, D]."""
        labels = input_ids.masked_fill(input_ids == PAD_ID, IGNORED)
        labels[:, : len(PREFIXES["short"])] = IGNORED
        output = self.blip(pixel_values=pixel_values, input_ids=input_ids, labels=labels)
        return output.loss, output.last_hidden_state


def build_blip() -> BlipForConditionalGeneration:
    """Return the untrained model: 4 vision layers, 3 text layers, 1.40M parameters."""
    shared = {"hidden_size": WIDTH, "num_attention_heads": NUM_HEADS, "projection_dim": WIDTH}
    text = {
        **shared,
        "vocab_size": VOCAB_SIZE,
        "encoder_hidden_size": WIDTH,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.04,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "sep_token_id": EOS_ID,  # where BLIP's generate stops
        "pad_token_id": PAD_ID,
    }
    vision = {
        **shared,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "image_size": IMAGE_SIZE_PX,
        "patch_size": PATCH_PX,
        "initializer_range": 0.04,  # transformers' default for BLIP, 1e-10, is only for loading weights
    }
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, image_text_hidden_size=WIDTH)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding[0, 1:] = grid_positions(GRID, WIDTH)
    return model


def grid_positions(side: int, width: int) -> Tensor:
    """Return sines and cosines of row and column, [side * side, width] (He et al. 2022, arXiv 2111.06377)."""
    rates = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates  # [side, width / 4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def to_pixel_values(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 [B, H, W, 3] into float32 [B, 3, H, W] in -1..1 (mean 0.5, deviation 0.5)."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def augment(images: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Shift by up to two pixels, change the brightness, soften, add noise; positions and light keep their meaning."""
    padded = np.pad(images, ((0, 0), (MAX_SHIFT_PX, MAX_SHIFT_PX), (MAX_SHIFT_PX, MAX_SHIFT_PX), (0, 0)), mode="edge")
    shifts = rng.integers(0, 2 * MAX_SHIFT_PX + 1, size=(len(images), 2))
    size = images.shape[1]
    moved = np.stack([image[y : y + size, x : x + size] for image, (y, x) in zip(padded, shifts, strict=True)])
    pixels = to_pixel_values(moved)
    per_image = (len(images), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, per_image).astype(np.float32))
    softness = torch.from_numpy((rng.random(per_image) * (rng.random(per_image) < 0.4)).astype(np.float32))
    deviation = torch.from_numpy(rng.uniform(0, 0.08, per_image).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    blurred = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    lit = (torch.lerp(pixels, blurred, softness) + 1) * gain - 1
    return (lit + deviation * noise).clamp(-1, 1)


def patch_labels(scene: Scene) -> NDArray[np.bool_]:
    """Say which patches lie on an object of the scene, [patches]."""
    rng = np.random.Generator(np.random.PCG64([scene.seed, 1]))  # as in `render`
    centres = (np.arange(GRID) + 0.5) * PATCH_PX
    covered = np.zeros((GRID, GRID), dtype=bool)
    for spots in place(scene, rng):
        for spot in spots:
            rows, columns = np.abs(centres - spot.y) < spot.radius, np.abs(centres - spot.x) < spot.radius
            covered |= rows[:, None] & columns[None]
    return covered.ravel()


def pad_rows(rows: list[list[int]]) -> Tensor:
    """Pad rows of ids on the right to one length, [B, S]."""
    length = max(len(row) for row in rows)
    return torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows])


class CaptionerLoss:
    """The loss of one step: captions, half short and half long, and what the helping heads should read."""

    def __init__(self, module: Captioner, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.module, self.corpus, self.tokenizer = module, corpus, tokenizer

    def __call__(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its parts for the items of `draw`."""
        rng = np.random.default_rng(draw.generator.initial_seed())
        scenes = [self.corpus.scene(int(index)) for index in draw.indices]
        qualities = rng.permutation(np.resize(["short", "long"], len(scenes)))
        rows = [self._row(scene, str(quality), rng) for scene, quality in zip(scenes, qualities, strict=True)]
        pixel_values = augment(self.corpus.images[draw.indices], rng)
        caption_loss, states = self.module(pixel_values, pad_rows(rows))
        helping = self._helping_losses(scenes, states)
        metrics = {"caption": caption_loss.item(), **{name: loss.item() for name, loss in helping.items()}}
        return caption_loss + 0.3 * torch.stack(list(helping.values())).sum(), metrics

    def _row(self, scene: Scene, quality: str, rng: np.random.Generator) -> list[int]:
        text = caption(scene, quality, int(rng.integers(1 << 31)))
        return [*PREFIXES[quality], *encode(self.tokenizer, text), EOS_ID]

    def _helping_losses(self, scenes: list[Scene], states: Tensor) -> dict[str, Tensor]:
        labels = [scene_labels(scene) for scene in scenes]
        columns = {name: torch.tensor([label[name] for label in labels]) for name in ATTRIBUTES}
        losses = {name: F.cross_entropy(head(states[:, 0]), columns[name]) for name, head in self.module.heads.items()}
        covered = torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))  # [B, patches]
        for name, head in self.module.patch_heads.items():
            wanted = torch.where(covered, columns[name][:, None], len(ATTRIBUTES[name]))
            losses[f"patch_{name}"] = F.cross_entropy(head(states[:, 1:]).flatten(0, 1), wanted.flatten())
        return losses


@torch.no_grad()
def write_captions(model: Any, pixel_values: Tensor, length: str, tokenizer: Tokenizer) -> list[str]:
    """Caption images [B, 3, 64, 64] greedily; `length` is short or long."""
    prompt = torch.tensor([[*PREFIXES[length], EOS_ID]]).expand(len(pixel_values), -1).clone()  # generate drops the eos
    rows = model.generate(pixel_values=pixel_values, input_ids=prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return [decode(tokenizer, row) for row in rows.tolist()]


def evaluate(model: Any, tokenizer: Tokenizer, num_scenes: int, length: str = "long") -> dict[str, float]:
    """Caption fresh scenes and read the captions back: the share of each attribute that is right."""
    scenes = [sample_scene(FRESH_SEED + index) for index in range(num_scenes)]
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, num_scenes, 128):
        some = scenes[start : start + 128]
        pixel_values = to_pixel_values(np.stack([render(scene, IMAGE_SIZE_PX) for scene in some]))
        for scene, text in zip(some, write_captions(model, pixel_values, length, tokenizer), strict=True):
            reading = read_caption(text)
            for name in right:
                right[name].append(getattr(reading, name) == getattr(scene, name))
    return {name: float(np.mean(values)) for name, values in right.items()} | {"n": num_scenes}


def save(model: Any, tokenizer_folder: Path, out: Path) -> None:
    """Write the model as half-precision safetensors, with its image processor and tokenizer, sealed."""
    model.half().save_pretrained(out, safe_serialization=True)
    BlipImageProcessor(
        size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(out)
    for path in tokenizer_folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    settings = {"prefixes": PREFIXES, "max_new_tokens": MAX_NEW_TOKENS}
    (out / "captory.json").write_text(json.dumps(settings, indent=2) + "\n")
    seal(out)


def main(
    out: Annotated[Path, typer.Option(help="folder of the run; the model is written to its subfolder model")],
    corpus: Annotated[Path, typer.Option(help="folder of the rendered corpus")] = Path("corpus"),
    tokenizer: Annotated[Path, typer.Option(help="folder of the tokenizer")] = Path("tokenizer"),
    num_scenes: Annotated[int, typer.Option(help="scenes of the corpus")] = 80_000,
    single_share: Annotated[float, typer.Option(help="share of the corpus' scenes with one object")] = 0.7,
    max_minutes: float = 32.0,
    seed: int = 0,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    num_threads: int = 1,
) -> None:
    """Train the captioner on a rendered corpus, evaluate it on fresh scenes, and write it as a checkpoint."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    words = load_tokenizer(tokenizer / "tokenizer.json")
    module = Captioner()
    plan = Plan(
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=200,
        weight_decay=0.03,
        ema_decay=0.998,
        max_minutes=max_minutes,
        probe_minutes=5.0,
    )

    def probe(trained: nn.Module, progress: Progress) -> dict[str, float]:
        return evaluate(trained.blip, words, 128)

    loss = CaptionerLoss(module, Corpus.open(corpus, num_scenes, single_share=single_share), words)
    module.load_state_dict(Trainer(module, loss, num_scenes, plan, out, probe=probe).run())
    module.eval()
    quality = {length: evaluate(module.blip, words, 1024, length) for length in PREFIXES}
    quality["model"] = {"parameters": sum(parameter.numel() for parameter in module.blip.parameters())}
    (out / "quality.json").write_text(json.dumps(quality, indent=2))
    save(module.blip, tokenizer, out / "model")
    typer.echo(json.dumps(quality))


if __name__ == "__main__":
    typer.run(main)
