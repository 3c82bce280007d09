"""Noise schedules: from betas to sigmas, and which timesteps a sampler visits. Pure functions, no solver here.

Everything is in the variance-exploding frame of Karras et al. 2022 (arXiv 2206.00364): x = x0 + sigma * noise,
with sigma = sqrt((1 - alpha_bar) / alpha_bar) of the variance-preserving schedule the network was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from captory_engine.errors import InvalidInput

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseSchedule:
    """The discrete schedule of training. `prediction_type` is what the network returns: epsilon or v_prediction."""

    num_train_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"

    @cached_property
    def sigmas(self) -> Vector:
        """Sigma of every training timestep, [num_train_timesteps], ascending."""
        alpha_bar = np.cumprod(1.0 - _betas(self))
        return np.sqrt((1.0 - alpha_bar) / alpha_bar)

    def sigma_at(self, timesteps: Vector) -> Vector:
        """Sigma at possibly fractional timesteps, linearly between the discrete ones."""
        return np.interp(timesteps, np.arange(self.num_train_timesteps), self.sigmas)


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow (Liu et al. 2022, arXiv 2209.03003): x = (1 - sigma) x0 + sigma n; the network tells n - x0.

    `shift` moves the steps towards noise, the more the larger the images (Esser et al. 2024, arXiv 2403.03206, eq. 23).
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    def sigmas(self, steps: int) -> Vector:
        """Sigma at the start of every step, [steps], from 1 down, spaced as diffusers spaces them."""
        lowest = self._shifted(np.array(1.0 / self.num_train_timesteps))
        return self._shifted(np.linspace(1.0, float(lowest), steps))

    def _shifted(self, sigmas: Vector) -> Vector:
        shifted: Vector = self.shift * sigmas / (1.0 + (self.shift - 1.0) * sigmas)
        return shifted


Schedule = NoiseSchedule | FlowSchedule


def _betas(schedule: NoiseSchedule) -> Vector:
    start, end, count = schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps
    if schedule.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    if schedule.beta_schedule == "linear":
        return np.linspace(start, end, count)
    if schedule.beta_schedule == "squaredcos_cap_v2":
        edges = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        betas: Vector = np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)
        return betas
    raise InvalidInput("BETA_SCHEDULE", f"unknown beta schedule {schedule.beta_schedule!r}")


def leading(num_train_timesteps: int, steps: int) -> Vector:
    """Multiples of the stride, offset by one (DDIM as Stable Diffusion uses it)."""
    stride = num_train_timesteps // steps
    return (np.arange(steps)[::-1] * stride + 1).clip(max=num_train_timesteps - 1).astype(np.float64)


def linspace(num_train_timesteps: int, steps: int) -> Vector:
    """Evenly from the last timestep to the first, fractional (Euler)."""
    return np.linspace(0, num_train_timesteps - 1, steps)[::-1].astype(np.float32).astype(np.float64)


def linspace_open(num_train_timesteps: int, steps: int) -> Vector:
    """Evenly from the last timestep, without the first, rounded (DPM-Solver++)."""
    return np.linspace(0, num_train_timesteps - 1, steps + 1).round()[::-1][:-1]
