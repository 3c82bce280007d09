"""Picto end to end on the device: photograph to caption to prompt to image, through the engine's own stages.

The words between captioner and painter stay token ids, since their vocabulary is one: so no tokenizer is needed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captory_bench.gpu.setup import Setup
from captory_engine.device import Device
from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.schedules import NoiseSchedule
from captory_engine.engines.batching import BatchRule
from captory_engine.engines.denoiser import TEXT, Denoiser, DenoiseTask
from captory_engine.engines.single_step import GraphTask, SingleStep
from captory_engine.engines.token_decoder import DecoderShape, TokenDecoder, TokenTask
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.options import SessionOptions, TorchOptions
from captory_engine.sessions.torch import TorchSession
from captory_engine.sessions.torch_checkpoints import default_checkpoints, open_checkpoint
from captory_training.picto.render import render
from captory_training.picto.scene import sample_scene

Array = NDArray[Any]
Ports = tuple[TensorSpec, ...]
# Settings of the family file, which cannot be read without PyYAML.
STEPS, GUIDANCE, SAMPLER = 16, 2.0, "dpmpp-2m"
BOS, EOS, PAD, SHORT = 1, 2, 0, 3
MAX_NEW_TOKENS = 48
SIZE_PX, SCALE = 64, 8
FIRST_SCENE = 2_500_000_000  # apart from those of trainings and of the other benchmarks
ROWS = 64
PATCH_PX, VOCABULARY = 8, 1024
# Between devices and types of weights: equal captions, and grey levels of 255 as means over the images.
MIN_EQUAL_CAPTIONS, MAX_MEAN_DIFFERENCE = 0.8, 4.0


class Painted(NamedTuple):
    """The caption's ids and the image, [64, 64, 3] in 0..255."""

    caption: tuple[int, ...]
    pixels: Array


@dataclass(frozen=True, slots=True)
class Picto:
    """The family's graphs on one device, and what its configurations say."""

    sessions: dict[str, TorchSession]
    words: DecoderShape
    schedule: NoiseSchedule
    max_tokens: int
    latents: tuple[int, int, int]


def compare(setup: Setup) -> dict[str, Any]:
    """Images a second on the device, and how far its captions and images are from the CPU's in fp32."""
    photos = [photo_of(FIRST_SCENE + index) for index in range(setup.scale.photos)]
    on_device = open_picto(_options(setup, str(setup.device), setup.dtype))
    painted, _ = paint(on_device, photos)  # every size of batch is captured
    seconds = [paint(on_device, photos)[1] for _ in range(setup.scale.rounds)]
    compared = photos[: setup.scale.compared_photos]
    reference, _ = paint(open_picto(_options(setup, "cpu", "fp32")), compared)
    return {
        "photos": len(photos),
        "steps": STEPS,
        "images_per_s": [len(photos) / one for one in seconds],
        "checks": agreement(painted[: len(compared)], reference),
    }


def agreement(found: Sequence[Painted], reference: Sequence[Painted]) -> dict[str, Any]:
    """How many captions are equal, and the mean difference of the images that have the same words."""
    pairs = [pair for pair in zip(found, reference, strict=True) if pair[0].caption == pair[1].caption]
    share = len(pairs) / len(reference)
    difference = float(np.mean([np.abs(one.pixels - other.pixels).mean() for one, other in pairs])) if pairs else None
    ok = share >= MIN_EQUAL_CAPTIONS and difference is not None and difference <= MAX_MEAN_DIFFERENCE
    return {
        "ok": ok,
        "equal_captions": share,
        "mean_difference": difference,
        "bounds": {"equal_captions": MIN_EQUAL_CAPTIONS, "mean_difference": MAX_MEAN_DIFFERENCE},
    }


def open_picto(options: SessionOptions) -> Picto:
    """Every graph of the family but the writer's, from its checkpoints."""
    root = options.torch.checkpoints or default_checkpoints()
    text = _config(root, "painter/text_encoder/config.json")
    unet = _config(root, "painter/unet/config.json")
    noise = _config(root, "painter/scheduler/scheduler_config.json")
    words = _decoder_shape(_config(root, "captioner/config.json")["text_config"])
    latents = unet["in_channels"], SIZE_PX // SCALE, SIZE_PX // SCALE
    ports = _ports(words, latents, text["max_position_embeddings"], text["hidden_size"])
    kept = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    return Picto(
        {role: _open(root, role, *ends, options) for role, ends in ports.items()},
        words,
        NoiseSchedule(**{name: noise[name] for name in kept}),
        text["max_position_embeddings"],
        latents,
    )


def paint(picto: Picto, photos: Sequence[Array]) -> tuple[list[Painted], float]:
    """Caption and paint photos [3, 64, 64] together; what came of each, and the seconds of all."""
    started = time.perf_counter()
    painted = asyncio.run(_paint(picto, photos))
    return painted, time.perf_counter() - started


async def _paint(picto: Picto, photos: Sequence[Array]) -> list[Painted]:
    device = Device(_engines(picto))
    loop = asyncio.create_task(device.serve())
    try:
        negative = await _encode(picto, device, ())
        return await asyncio.gather(*(_live(picto, device, *one, negative) for one in enumerate(photos)))
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await device.close()


async def _live(picto: Picto, device: Device, seed: int, photo: Array, negative: Array) -> Painted:
    """One photo's way through the stages."""
    context = await device.submit("vision", GraphTask({"pixel_values": photo}))
    caption = await device.submit("caption", TokenTask((BOS, SHORT), MAX_NEW_TOKENS, context=context))
    text = await _encode(picto, device, caption)
    plan = make_plan(picto.schedule, SAMPLER, STEPS, GUIDANCE > 1.0)
    denoising = DenoiseTask(plan, seed, picto.latents, {TEXT: text}, {TEXT: negative}, GUIDANCE)
    latents = await device.submit("denoise", denoising)
    image = (await device.submit("vae", GraphTask({"latent_sample": latents})))["sample"]
    return Painted(caption, (image.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5)


async def _encode(picto: Picto, device: Device, ids: Sequence[int]) -> Array:
    """Text states [T, D] of ids framed as the painter's tokenizer frames them."""
    framed = [BOS, *ids[: picto.max_tokens - 2], EOS]
    row = np.full(picto.max_tokens, PAD, np.int64)
    row[: len(framed)] = framed
    states: Array = (await device.submit("text", GraphTask({"input_ids": row})))["last_hidden_state"]
    return states


def _options(setup: Setup, device: str, dtype: str) -> SessionOptions:
    """On the device that is measured batches have fixed sizes; the reference takes them as they come."""
    settings = TorchOptions(device=device, dtype=dtype, graphs=(device, dtype) == (str(setup.device), setup.dtype))
    return SessionOptions(num_threads=setup.num_threads, torch=settings)


def _engines(picto: Picto) -> list[Any]:
    rule, profile, sessions = BatchRule(), Profile(max_rows=ROWS), picto.sessions
    return [
        SingleStep("vision", sessions["captioner_vision"], profile, rule),
        TokenDecoder("caption", sessions["captioner_decoder"], picto.words, profile, rule),
        SingleStep("text", sessions["painter_text_encoder"], profile, rule),
        Denoiser(sessions["painter_unet"], replace(profile, neck=True), rule),
        SingleStep("vae", sessions["painter_vae_decoder"], profile, rule),
    ]


def _open(root: Path, role: str, inputs: Ports, outputs: Ports, options: SessionOptions) -> TorchSession:
    module, digest = open_checkpoint(root, f"picto_{role}")
    return TorchSession(role, module, inputs, outputs, max_batch=ROWS, digest=digest, options=options)


def _ports(words: DecoderShape, latents: tuple[int, ...], tokens: int, width: int) -> dict[str, tuple[Ports, Ports]]:
    """Inputs and outputs by role, as the repository's configurations declare them."""
    image, states = (3, SIZE_PX, SIZE_PX), (tokens, width)
    heads = (words.num_layers, words.num_heads)
    cross = dict.fromkeys(("cross_keys", "cross_values"), (*heads, (SIZE_PX // PATCH_PX) ** 2 + 1, words.head_dim))
    cache = (*heads, -1, words.head_dim)
    past = {"past_mask": (-1,), "past_keys": cache, "past_values": cache}
    new = _floats(logits=(-1, VOCABULARY), new_keys=cache, new_values=cache)
    return {
        "captioner_vision": (_floats(pixel_values=image), _floats(**cross)),
        "captioner_decoder": ((*_integers(input_ids=(-1,), position_ids=(-1,)), *_floats(**past, **cross)), new),
        "painter_text_encoder": (_integers(input_ids=(tokens,)), _floats(last_hidden_state=states)),
        "painter_unet": (
            _floats(sample=latents, timestep=(), encoder_hidden_states=states),
            _floats(out_sample=latents),
        ),
        "painter_vae_decoder": (_floats(latent_sample=latents), _floats(sample=image)),
    }


def _floats(**shapes: tuple[int, ...]) -> Ports:
    return tuple(TensorSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items())


def _integers(**shapes: tuple[int, ...]) -> Ports:
    return tuple(TensorSpec(name, np.dtype(np.int64), shape) for name, shape in shapes.items())


def _decoder_shape(text: dict[str, Any]) -> DecoderShape:
    heads = text["num_attention_heads"]
    return DecoderShape(
        text["num_hidden_layers"], heads, text["hidden_size"] // heads, text["max_position_embeddings"], EOS
    )


def _config(root: Path, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((root / "picto" / name).read_text(encoding="utf-8"))
    return config


def photo_of(seed: int) -> Array:
    """A scene of the picture world as the captioner takes it, [3, 64, 64] in -1..1."""
    pixels = render(sample_scene(seed), SIZE_PX)
    return (pixels.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)
