"""A family's graphs, opened as the server opens them, and the stages as plain functions over fixed batches.

Here is no scheduler, no codec and no wire: this is what the arms of `captory bench` that run in one process share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captory_engine import family as families
from captory_engine import images
from captory_engine.captioning import pixel_values
from captory_engine.diffusion.schedules import Schedule
from captory_engine.engines.batching import padded
from captory_engine.errors import BadModel
from captory_engine.family import find_family
from captory_engine.items import Mode
from captory_engine.modes import PromptPlan, read_modes
from captory_engine.prompts import build_prompt, clean_model_text, given_words
from captory_engine.repository import open_model
from captory_engine.sessions.base import Session
from captory_engine.sessions.options import SessionOptions, available_cpus
from captory_engine.sessions.registry import open_session
from captory_engine.stages import schedule_of
from captory_engine.tokenizer import PromptTokenizer, Tokenizer

Array = NDArray[Any]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Graphs:
    """The sessions of one family with their tokenizers and settings."""

    captioner: families.Captioner
    painter: families.Painter
    vision: Session
    decoder: Session
    text: Session
    denoiser: Session
    vae: Session
    words: Tokenizer
    framing: PromptTokenizer
    schedule: Schedule

    @property
    def guided(self) -> bool:
        """Whether the family's default guidance needs the unconditional row."""
        return self.painter.defaults.guidance_scale > 1.0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents at the family's first size."""
        (width, height), scale = self.painter.sizes[0], self.painter.vae_scale_factor
        return self.painter.latent_channels, height // scale, width // scale


def open_graphs(repository: Path, family: str = "", *, backend: str = "onnx", num_threads: int = 0) -> Graphs:
    """Open the graphs with the options that the server uses. Raises `BadModel`."""
    root, found = find_family(repository, family)
    options = SessionOptions(num_threads=num_threads or available_cpus())

    def session(name: str) -> Session:
        return open_session(backend, open_model(root, name), options)

    captioner, painter = found.captioner, found.painter
    if captioner is None:
        raise BadModel("NO_CAPTIONER", f"The family {found.name!r} has no captioner of its own to measure.")
    return Graphs(
        captioner=captioner,
        painter=painter,
        vision=session(captioner.vision),
        decoder=session(captioner.decoder),
        text=session(painter.text_encoder),
        denoiser=session(painter.denoiser),
        vae=session(painter.vae_decoder),
        words=Tokenizer(root / captioner.tokenizer),
        framing=PromptTokenizer(Tokenizer(root / painter.tokenizer), painter.max_tokens, painter.pad_id),
        schedule=schedule_of(painter),
    )


def to_pixel_values(graphs: Graphs, data: bytes) -> Array:
    """An encoded image as the vision encoder takes it, [3, S, S], float32."""
    spec = graphs.captioner
    return pixel_values(spec, images.decode_image(data, min_side_px=spec.image_size_px))


def caption(graphs: Graphs, pixel_values: Array) -> list[str]:
    """Short captions of [B, 3, S, S], greedy, with a cache; the whole batch goes on until its last caption ends."""
    spec = graphs.captioner
    context, _ = padded(graphs.vision, {"pixel_values": pixel_values})
    prefix = spec.prefixes["short"]
    length = min(len(prefix) + spec.max_new_tokens - 1, spec.max_positions)  # the last token is not fed again
    cache = (len(pixel_values), spec.num_layers, spec.num_heads, length, spec.head_dim)
    keys, values = np.zeros(cache, np.float32), np.zeros(cache, np.float32)
    fed = np.tile(np.array(prefix, np.int64), (len(pixel_values), 1))
    tokens: list[Array] = []
    cached = 0
    while cached < length:
        step = _decoder_inputs(fed, cached, keys, values)
        output, _ = padded(graphs.decoder, step | context)
        here = slice(cached, cached + fed.shape[1])
        keys[:, :, :, here] = output["new_keys"][:, :, :, : fed.shape[1]]
        values[:, :, :, here] = output["new_values"][:, :, :, : fed.shape[1]]
        cached += fed.shape[1]
        fed = output["logits"][:, -1].argmax(-1)[:, None]
        tokens.append(fed[:, 0])
        if (np.stack(tokens) == spec.eos_id).any(0).all():
            break
    return [clean_model_text(graphs.words.decode(_until(row, spec.eos_id))) for row in np.stack(tokens, axis=1)]


def cip_prompts(captions: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Caption-in-prompt prompts."""
    pairs = zip(class_names, captions, strict=True)
    return [build_prompt(_cip(), given_words(_cip(), *pair)) for pair in pairs]


@cache
def _cip() -> PromptPlan:
    return read_modes().plans[Mode.CIP]


def encode_text(graphs: Graphs, prompts: Sequence[str]) -> Array:
    """Text states of prompts, [B, T, D]."""
    ids = np.stack([graphs.framing.encode(prompt).ids for prompt in prompts])
    states: Array = padded(graphs.text, {"input_ids": ids})[0]["last_hidden_state"]
    return states


def decode_latents(graphs: Graphs, latents: Array) -> list[Pixels]:
    """Pixels [H, W, 3] of every row of latents [B, C, H, W]; raises `BadOutput` for what is not finite."""
    scaled = latents / np.float32(graphs.painter.scaling_factor) + np.float32(graphs.painter.shift_factor)
    return [images.latents_to_uint8(sample) for sample in padded(graphs.vae, {"latent_sample": scaled})[0]["sample"]]


def _decoder_inputs(fed: Array, cached: int, keys: Array, values: Array) -> dict[str, Array]:
    num_rows, num_fed = fed.shape
    mask = (np.arange(keys.shape[3]) < cached).astype(np.float32)
    return {
        "input_ids": fed,
        "position_ids": np.tile(np.arange(cached, cached + num_fed), (num_rows, 1)),
        "past_mask": np.tile(mask, (num_rows, 1)),
        "past_keys": keys,
        "past_values": values,
    }


def _until(tokens: Array, end: int) -> list[int]:
    """The tokens before the first `end`."""
    ends = np.flatnonzero(tokens == end)
    return [int(token) for token in tokens[: ends[0] if len(ends) else len(tokens)]]
