"""The painter's text encoder: a small CLIPTextModel that first learns to name what a caption says.

Before the UNet exists it is trained from scenes and captions alone, without pictures: linear heads on its mean state
predict every attribute of the scene. The heads are thrown away. A caption that leaves something open, such as the bare
word "crane", teaches the spread of what it may mean.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from captory_training.corpus import Recipe
from captory_training.picto.captions import caption, full_caption
from captory_training.picto.kinds import KIND_BY_KEY
from captory_training.picto.scene import (
    AGES,
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    HAIRS,
    LIGHTS,
    POSITIONS,
    SIZES,
    SKINS,
    Scene,
)
from captory_training.tokenizer import BOS_ID, CONTEXT_LENGTH, EOS_ID, PAD_ID, VOCAB_SIZE
from captory_training.trainer import Draw, Plan, Trainer, load_ema

HIDDEN_SIZE = 128
NUM_LAYERS = 3
ENCODE_BATCH = 64
NUM_VARIANTS = 2  # wordings of a caption of each quality that a scene is shown with

FACE_VALUES: dict[str, tuple[Any, ...]] = {
    "hair": HAIRS,
    "skin": SKINS,
    "age": AGES,
    **dict.fromkeys(("glasses", "beard", "hat", "smile"), (False, True)),
}
GROUP_VALUES: dict[str, tuple[Any, ...]] = {
    "kind": tuple(KIND_BY_KEY),
    "colour": COLOURS,
    "count": COUNTS,
    "size": SIZES,
    "position": POSITIONS,
}
SCENE_VALUES: dict[str, tuple[Any, ...]] = {"background": BACKGROUNDS, "light": LIGHTS}
NO_LABEL = -100


def build() -> CLIPTextModel:
    """Return an untrained text encoder, ids [B, 64] to states [B, 64, 128]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=4 * HIDDEN_SIZE,
            projection_dim=HIDDEN_SIZE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
        )
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return ids [B, 64], truncated and padded as the served painter does."""
    frame = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt")
    ids: torch.Tensor = frame["input_ids"]
    return ids


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one caption of the painter's diet: mostly full or long, some short, some prompts, a tenth empty."""
    share, variant = rng.random(), int(rng.integers(NUM_VARIANTS))
    name = KIND_BY_KEY[scene.kind].class_name
    if share < 0.10:
        return ""
    if share < 0.17:
        return f"a photo of {name}" if variant else name
    if share < 0.25:
        return f"a photo of {name}, {caption(scene, 'short' if rng.random() < 0.5 else 'long', variant)}"
    if share < 0.50:
        return caption(scene, "short", variant)
    return full_caption(scene) if share < 0.78 else caption(scene, "long", variant)


def truth(scene: Scene) -> list[int]:
    """Return the index of each attribute's value; what a scene lacks (a face's traits) has no label."""
    group = scene.groups[0]
    face = asdict(group.face) if group.face else None
    return [
        *(values.index(getattr(group, name)) for name, values in GROUP_VALUES.items()),
        *(values.index(getattr(scene, name)) for name, values in SCENE_VALUES.items()),
        *(values.index(face[name]) if face else NO_LABEL for name, values in FACE_VALUES.items()),
    ]


class Namer(nn.Module):
    """A text encoder under throw-away heads on its mean state."""

    def __init__(self) -> None:
        """Make an untrained one."""
        super().__init__()
        self.text_encoder = build()
        values = [*GROUP_VALUES.values(), *SCENE_VALUES.values(), *FACE_VALUES.values()]
        self.sizes = [len(options) for options in values]
        self.head = nn.Linear(HIDDEN_SIZE, sum(self.sizes))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits of each attribute, [B, n]."""
        states = self.text_encoder(input_ids).last_hidden_state
        return tuple(self.head(states.mean(dim=1)).split(self.sizes, dim=-1))


def train(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, out: Path, plan: Plan) -> CLIPTextModel:
    """Train to the end of the plan and return the text encoder."""
    torch.manual_seed(plan.seed)
    namer = Namer()

    def loss(draw: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([plan.seed, draw.step])
        scenes = [recipe.scene(int(index)) for index in draw.indices]
        logits = namer(tokenize(tokenizer, [sample_caption(scene, rng) for scene in scenes]))
        labels = torch.tensor([truth(scene) for scene in scenes]).unbind(dim=1)
        pairs = [(out, wanted) for out, wanted in zip(logits, labels, strict=True) if (wanted != NO_LABEL).any()]
        losses = torch.stack([functional.cross_entropy(out, wanted, ignore_index=NO_LABEL) for out, wanted in pairs])
        return losses.sum(), {"kind_loss": losses[0].item(), "position_loss": losses[4].item()}

    Trainer(namer, loss, 1_000_000, plan, out).run()
    namer.load_state_dict(load_ema(out))
    return namer.text_encoder.eval()


class StateCache:
    """The frozen text encoder with a memory: each caption's states are computed once, kept as float16."""

    def __init__(self, text_encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerFast, max_captions: int) -> None:
        """Remember the states of up to `max_captions` captions, 16 KB each."""
        self.text_encoder, self.tokenizer, self.max_captions = text_encoder, tokenizer, max_captions
        self._states: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Return states [B, 64, 128]."""
        missing = [text for text in dict.fromkeys(captions) if text not in self._states]
        fresh: dict[str, torch.Tensor] = {}
        for start in range(0, len(missing), ENCODE_BATCH):
            texts = missing[start : start + ENCODE_BATCH]
            states = self.text_encoder(tokenize(self.tokenizer, texts)).last_hidden_state.half()
            fresh |= dict(zip(texts, states, strict=True))
        result = torch.stack([self._states[text] if text in self._states else fresh[text] for text in captions])
        if len(self._states) < self.max_captions:
            self._states |= {text: states.clone() for text, states in fresh.items()}
        return result.float()
