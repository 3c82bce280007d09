"""The stages of words and of painting as plain async functions over one device: words to words, words to pixels.

Each knows its models' shapes and nothing of items. What has been computed for equal content is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captory_engine import family as families
from captory_engine.cache import LruCache, SingleFlight, content_key
from captory_engine.device import Device
from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.schedules import FlowSchedule, NoiseSchedule, Schedule
from captory_engine.engines.denoiser import DenoiseTask
from captory_engine.engines.single_step import GraphTask
from captory_engine.engines.token_decoder import TokenTask
from captory_engine.items import Determinism, Parameters, Sample, WorkClass
from captory_engine.modes import Instruction, fill
from captory_engine.tokenizer import PromptTokenizer, Tokenizer

Array = NDArray[Any]
Conditions = dict[str, Array]  # what a denoiser is told, one row, by its inputs' names
SIZED = "stable-diffusion-xl"


class Share(NamedTuple):
    """How a piece of work takes part: its class on the device and whether its bits may depend on its mates."""

    work_class: WorkClass
    exact: bool

    @staticmethod
    def of(parameters: Parameters) -> Share:
        """The share of one item's work."""
        return Share(parameters.work_class, parameters.determinism is Determinism.EXACT)


@dataclass(frozen=True, slots=True)
class EmbeddedWriter:
    """The family's own language model, which was trained to answer inside its templates."""

    device: Device
    spec: families.Writer
    tokenizer: Tokenizer

    async def attempt(self, instruction: Instruction, words: Mapping[str, str], seed: int, share: Share) -> str:
        """One answer, sampled by `seed` (`captory_engine.wording.Writer`). It knows no top_p, stop words and schema."""
        spec = self.spec
        prefix, max_tokens = framed(spec, self.tokenizer, instruction, words)
        task = TokenTask(
            tuple(prefix),
            max_tokens,
            temperature=spec.temperature if instruction.temperature is None else instruction.temperature,
            top_k=spec.top_k or 0,
            seed=seed,
            exact=share.exact,
        )
        return self.tokenizer.decode(await self.device.submit("write", task, share.work_class))


def framed(
    spec: families.Writer, tokenizer: Tokenizer, instruction: Instruction, words: Mapping[str, str]
) -> tuple[list[int], int]:
    """What the family's writer reads, and how many tokens it may write; of a text that is too long, the beginning."""
    before, after = spec.templates[instruction.task].split("{text}")
    prefix = [*tokenizer.template_ids(before), *tokenizer.encode(fill(instruction.text, words))]
    prefix = [*prefix[: spec.max_positions // 2], *tokenizer.template_ids(after)]
    return prefix, min(instruction.max_tokens, spec.max_new_tokens, spec.max_positions - len(prefix))


class Painter:
    """Text encoder, denoiser and autoencoder of a latent diffusion model (Rombach et al. 2022, arXiv 2112.10752).

    `tokenizers` frame a prompt for every input of the text encoder.
    """

    def __init__(
        self,
        device: Device,
        spec: families.Painter,
        tokenizers: Mapping[str, PromptTokenizer],
        cached_texts: int,
    ) -> None:
        self.tokenizer = tokenizers["input_ids"]
        self._tokenizers = tokenizers
        self._device = device
        self._spec = spec
        self._schedule = schedule_of(spec)
        self._texts = SingleFlight[Conditions](LruCache(cached_texts, cached_texts << 20, _num_bytes))

    async def paint(self, prompt: str, sample: Sample, parameters: Parameters) -> Array:
        """One image in [-1, 1], [3, H, W], float32."""
        share = Share.of(parameters)
        guided = parameters.guidance_scale > 1.0
        conditions = await self._conditions(prompt, parameters, share)
        negative = await self._negative(conditions, parameters, share) if guided else conditions
        interval = parameters.guidance_interval
        scale = self._spec.vae_scale_factor
        task = DenoiseTask(
            plan=make_plan(
                self._schedule, parameters.sampler, parameters.steps, guided, (interval.start, interval.stop)
            ),
            seed=sample.seed,
            shape=(self._spec.latent_channels, parameters.height // scale, parameters.width // scale),
            conditions=conditions,
            negative=negative,
            guidance_scale=parameters.guidance_scale,
            exact=share.exact,
        )
        latents = await self._device.submit("denoise", task, share.work_class)
        scaled = latents / np.float32(self._spec.scaling_factor) + np.float32(self._spec.shift_factor)
        decoding = GraphTask({"latent_sample": scaled}, share.exact)
        image: Array = (await self._device.submit("vae", decoding, share.work_class))["sample"]
        return image

    async def _conditions(self, prompt: str, parameters: Parameters, share: Share) -> Conditions:
        """All that the denoiser is told: the text, and in SDXL the size."""
        text = await self._encode(prompt, share)
        return text | size_condition(parameters.width, parameters.height) if self._spec.architecture == SIZED else text

    async def _negative(self, conditions: Conditions, parameters: Parameters, share: Share) -> Conditions:
        if parameters.negative_prompt or not self._spec.empty_is_zero:
            return await self._conditions(parameters.negative_prompt, parameters, share)
        return conditions | zero_text(self._spec, conditions)

    async def _encode(self, prompt: str, share: Share) -> Conditions:
        async def compute() -> Conditions:
            ids = {name: tokenizer.encode(prompt).ids for name, tokenizer in self._tokenizers.items()}
            outputs = await self._device.submit("text", GraphTask(ids, share.exact), share.work_class)
            return {name: outputs[output] for name, output in self._spec.conditions.items()}

        return await self._texts.get(content_key(prompt, str(share.exact)), compute)


def schedule_of(spec: families.Painter) -> Schedule:
    """The schedule that the painter was trained with."""
    if isinstance(spec.schedule, families.Flow):
        return FlowSchedule(spec.schedule.num_train_timesteps, spec.schedule.shift)
    return NoiseSchedule(**spec.schedule.model_dump())


def size_condition(width: int, height: int) -> Conditions:
    """SDXL's micro-conditioning (Podell et al. 2023, arXiv 2307.01952): original size, crop's corner, target size."""
    return {"time_ids": np.array([height, width, 0, 0, height, width], np.float32)}


def zero_text(spec: families.Painter, conditions: Conditions) -> Conditions:
    """What a painter whose `empty_is_zero` takes for an empty prompt."""
    return {name: np.zeros_like(conditions[name]) for name in spec.conditions}


def _num_bytes(conditions: Conditions) -> int:
    return sum(array.nbytes for array in conditions.values())
