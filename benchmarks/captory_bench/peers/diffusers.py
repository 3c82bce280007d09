"""What a script-writer does with the same weights in torch: transformers' BLIP and writer, `StableDiffusionPipeline`.

One process, eager, `inference_mode`, float32, as many threads as Captory may use. No queue, no wire and no encoding of
images, which favours it. Noise comes from Captory's seeds and the sampler is the family's, so the images can be
compared.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from PIL import Image
from torch.nn import functional
from transformers import BlipForConditionalGeneration, BlipImageProcessor, PreTrainedTokenizerFast

from captory_bench.measuring.bare_loop import BATCH_SIZES
from captory_bench.measuring.graphs import Pixels
from captory_bench.measuring.outcome import Outcome, Stopwatch
from captory_bench.measuring.workload import TRIAL, Painting, Photo, photos
from captory_bench.peers.contenders import Conditions, PeerOutcome, PeerUnavailable
from captory_bench.peers.groups import alike_batches
from captory_bench.peers.script_writer import ScriptWriter
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.family import PainterDefaults, find_family

Write = Callable[[Sequence[Photo]], list[str]]
# The classes as Stable Diffusion sets them, beside what the checkpoint's scheduler says.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, {}),
}


class Models:
    """The checkpoint's captioner, writer and painter. Raises `PeerUnavailable` when there is no checkpoint."""

    def __init__(self, conditions: Conditions) -> None:
        self.defaults: PainterDefaults = find_family(conditions.repository, conditions.family).family.painter.defaults
        if conditions.weights is None or not conditions.weights.is_dir():
            raise PeerUnavailable(f"no torch weights at {conditions.weights}")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        captioner, painter = conditions.weights / "captioner", conditions.weights / "painter"
        self._num_threads = conditions.num_threads
        self._prefixes = json.loads((captioner / "captory.json").read_text())
        self._processor = BlipImageProcessor.from_pretrained(captioner)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(captioner)
        self._captioner = BlipForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32).eval()
        self._writer = ScriptWriter(conditions.weights / "writer")
        self._pipeline = StableDiffusionPipeline.from_pretrained(painter, torch_dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._trained_with = self._pipeline.scheduler.config
        vae = json.loads((painter / "vae" / "config.json").read_text())
        self._pixel_shuffle_factor = vae.get("pixel_shuffle_factor", 1)

    def prompts(self, batch: Sequence[Photo]) -> list[str]:
        """Caption-in-prompt prompts of photographs."""
        return _prompts(batch, self._caption(batch, "short"))

    def rewritten_prompts(self, batch: Sequence[Photo]) -> list[str]:
        """The same with the long caption, rewritten."""
        with torch.inference_mode():
            return _prompts(batch, self._writer.rewrite(self._caption(batch, "long")))

    @torch.inference_mode()
    def _caption(self, batch: Sequence[Photo], length: str) -> list[str]:
        """Captions of photographs, captioned together, greedy."""
        torch.set_num_threads(self._num_threads)
        images = [Image.open(io.BytesIO(photo.data)).convert("RGB") for photo in batch]
        pixel_values = self._processor(images, return_tensors="pt").pixel_values
        prefix = self._prefixes["prefixes"][length]
        ids = torch.tensor([[*prefix, self._tokenizer.eos_token_id]]).repeat(len(batch), 1)  # generate drops the last
        tokens = self._captioner.generate(
            pixel_values=pixel_values, input_ids=ids, max_new_tokens=self._prefixes["max_new_tokens"], do_sample=False
        )
        return [text.strip() for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @torch.inference_mode()
    def paint(self, batch: Sequence[Painting]) -> list[Pixels]:
        """Images of prompts with equal parameters."""
        torch.set_num_threads(self._num_threads)
        first, unet = batch[0], self._pipeline.unet.config
        scheduler, settings = SCHEDULERS[first.sampler or self.defaults.sampler]
        self._pipeline.scheduler = scheduler.from_config(self._trained_with, **settings)
        shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        folded = self._pipeline(
            [job.prompt for job in batch],
            num_inference_steps=first.steps,
            guidance_scale=self.defaults.guidance_scale if first.guidance_scale is None else first.guidance_scale,
            latents=torch.from_numpy(np.stack([gaussian_noise(job.seed, shape) for job in batch])),
            output_type="pt",
        ).images
        images = functional.pixel_shuffle(folded, self._pixel_shuffle_factor).permute(0, 2, 3, 1)
        return list((images * 255).round().to(torch.uint8).numpy())


def _prompts(batch: Sequence[Photo], captions: Sequence[str]) -> list[str]:
    return [f"a photo of {photo.class_name}, {text}" for photo, text in zip(batch, captions, strict=True)]


@dataclass(frozen=True, slots=True)
class Script:
    """The script with one batch size. Mixed prompts are grouped by equal parameters first."""

    name: str
    settings: str
    models: Models
    batch_size: int

    async def paint_all(self, jobs: Sequence[Painting]) -> Outcome:
        """All prompts, batch after batch."""
        return await _measured(lambda outcome: self._paint(jobs, outcome))

    async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """All photographs, batch after batch: captions, then prompts, then images."""
        return await _measured(lambda outcome: self._paint_photos(photos, self.models.prompts, steps, outcome))

    async def paint_rewritten(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """The same with rewritten captions."""
        write = self.models.rewritten_prompts
        return await _measured(lambda outcome: self._paint_photos(photos, write, steps, outcome))

    def _paint(self, jobs: Sequence[Painting], outcome: PeerOutcome) -> None:
        for batch in alike_batches(jobs, self.batch_size):
            outcome.batches[len(batch)] += 1
            for job, pixels in zip(batch, self.models.paint(batch), strict=True):
                outcome.images[job.id], outcome.prompts[job.id] = pixels, job.prompt

    def _paint_photos(self, photos: Sequence[Photo], write: Write, steps: int, outcome: PeerOutcome) -> None:
        for start in range(0, len(photos), self.batch_size):
            batch = photos[start : start + self.batch_size]
            prompts = zip(batch, write(batch), strict=True)
            self._paint([Painting(photo.id, prompt, steps, photo.seed) for photo, prompt in prompts], outcome)


@asynccontextmanager
async def open_batch_1(conditions: Conditions) -> AsyncIterator[Script]:
    """One image at a time."""
    models = await asyncio.to_thread(Models, conditions)
    yield Script("diffusers-1", f"batch 1, {_words(models, conditions)}", models, 1)


@asynccontextmanager
async def open_best_batch(conditions: Conditions) -> AsyncIterator[Script]:
    """The batch size with which the script is fastest on a few photographs."""
    models = await asyncio.to_thread(Models, conditions)
    scripts = [Script("diffusers", "", models, size) for size in BATCH_SIZES]
    items = photos(max(BATCH_SIZES), TRIAL)
    await scripts[0].paint_photos(items[: BATCH_SIZES[0]], conditions.steps)  # warm-up
    seconds = [(await script.paint_photos(items, conditions.steps)).times.wall_s for script in scripts]
    best = min(zip(seconds, scripts, strict=True), key=lambda pair: pair[0])[1]
    words = f"batch {best.batch_size}, the best of {', '.join(map(str, BATCH_SIZES))}; equal step counts together"
    yield replace(best, settings=f"{words}, {_words(models, conditions)}")


def _words(models: Models, conditions: Conditions) -> str:
    return f"torch eager, {conditions.num_threads} threads, guidance {models.defaults.guidance_scale:g}"


async def _measured(work: Callable[[PeerOutcome], None]) -> Outcome:
    """Run the work off the event loop, into an outcome."""
    outcome = PeerOutcome()
    watch = Stopwatch()
    await asyncio.to_thread(work, outcome)
    return replace(outcome, times=watch.read())
