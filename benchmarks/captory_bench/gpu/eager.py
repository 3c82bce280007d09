"""The loop that a script-writer runs: diffusers' UNet and scheduler, eager, the batch doubled for guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor

from captory_bench.gpu.models import Model, conditions
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.engines.denoiser import TEXT, DenoiseTask


class EagerLoop:
    """Denoises images together, as `StableDiffusionPipeline.__call__` does once it has text and noise."""

    def __init__(self, model: Model, unet: Any, tasks: Sequence[DenoiseTask]) -> None:
        place = {"device": unet.device, "dtype": unet.dtype}
        self._unet = unet
        self._scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        self._scheduler.set_timesteps(tasks[0].plan.num_steps, device=unet.device)
        self._guidance = tasks[0].guidance_scale
        states = np.stack([task.negative[TEXT] for task in tasks] + [task.conditions[TEXT] for task in tasks])
        self._states = torch.from_numpy(states).to(**place)
        added = conditions(model)
        self._added = {name: value.to(**place).expand(2 * len(tasks), -1) for name, value in added.items()} or None
        noise = np.stack([gaussian_noise(task.seed, task.shape) for task in tasks])
        self.latents: Tensor = torch.from_numpy(noise).to(**place) * self._scheduler.init_noise_sigma

    @torch.no_grad()
    def step(self, timestep: Tensor) -> None:
        """One step of every image."""
        sample = self._scheduler.scale_model_input(torch.cat([self.latents] * 2), timestep)
        output = self._unet(sample, timestep, encoder_hidden_states=self._states, added_cond_kwargs=self._added).sample
        unconditional, conditional = output.chunk(2)
        guided = unconditional + self._guidance * (conditional - unconditional)
        self.latents = self._scheduler.step(guided, timestep, self.latents).prev_sample

    def run(self) -> NDArray[Any]:
        """All steps; latents [B, C, H, W], float32."""
        for timestep in self._scheduler.timesteps:
            self.step(timestep)
        return self.latents.float().cpu().numpy()

    def next_step(self) -> None:
        """The step that is due, for timing."""
        index = self._scheduler.step_index or 0
        self.step(self._scheduler.timesteps[index])
