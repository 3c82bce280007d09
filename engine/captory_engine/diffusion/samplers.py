"""Samplers as tables of numbers: a plan holds, for every step of an item, all that the step needs.

Every deterministic sampler here is a linear multistep rule, in the variance-exploding frame or along a flow,

    denoised = skip * x + out * network(c_in * x, timestep)
    x'       = decay * x + gain * denoised + memory * previous_denoised

so items with different samplers, step counts and guidance ride in one batch: a row differs in its six
coefficients only, and the update is one expression over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from captory_engine.diffusion.schedules import (
    FlowSchedule,
    NoiseSchedule,
    Schedule,
    Vector,
    leading,
    linspace,
    linspace_open,
)
from captory_engine.errors import InvalidInput

Coefficients = NDArray[np.float32]


@dataclass(frozen=True)
class Sampler:
    """One row of the table: which timesteps, where sigma ends, how the first noise is scaled, the rule's order."""

    timesteps: Callable[[int, int], Vector]
    final_sigma_zero: bool
    unit_variance_start: bool
    order: int


# Spacing, offset and final sigma as diffusers sets them for Stable Diffusion, with eta 0.
SAMPLERS: dict[str, Sampler] = {
    # Song et al. 2020, arXiv 2010.02502; set_alpha_to_one=False
    "ddim": Sampler(leading, final_sigma_zero=False, unit_variance_start=True, order=1),
    # Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn
    "euler": Sampler(linspace, final_sigma_zero=True, unit_variance_start=False, order=1),
    # Lu et al. 2022, arXiv 2211.01095, algorithm 2, multistep of order 2, first order at both ends
    "dpmpp-2m": Sampler(linspace_open, final_sigma_zero=True, unit_variance_start=True, order=2),
}


FLOW_SAMPLER = "flow-euler"  # Esser et al. 2024, arXiv 2403.03206: Euler's rule along the flow


def samplers_of(schedule: Schedule) -> tuple[str, ...]:
    """The samplers that walk a schedule."""
    return (FLOW_SAMPLER,) if isinstance(schedule, FlowSchedule) else tuple(SAMPLERS)


@dataclass(frozen=True, eq=False)
class Plan:
    """What each step of one item needs. Rows are steps: timesteps [N], coefficients [N, 6], guided [N].

    Columns of `coefficients`: c_in, skip, out, decay, gain, memory. `start_scale` multiplies the unit noise,
    `final_scale` brings the last x to the frame that the autoencoder knows: variance-preserving, or the flow's own.
    """

    timesteps: Coefficients
    coefficients: Coefficients
    guided: NDArray[np.bool_]
    start_scale: np.float32
    final_scale: np.float32

    @property
    def num_steps(self) -> int:
        """Forward passes of the network."""
        return len(self.timesteps)


@lru_cache(maxsize=1024)
def make_plan(
    schedule: Schedule, sampler: str, steps: int, guided: bool, interval: tuple[float, float] = (0.0, 1.0)
) -> Plan:
    """The plan of `steps` steps. `interval` is the share of the schedule, 0 its noisy end, in which guidance applies.

    Raises `InvalidInput` for an unknown sampler or a step count the schedule does not have.
    """
    known = samplers_of(schedule)
    if sampler not in known:
        raise InvalidInput("SAMPLER", f"unknown sampler; choose one of {', '.join(known)}", field="sampler")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise InvalidInput("STEPS", f"steps must be 1 to {schedule.num_train_timesteps}", field="steps")
    if isinstance(schedule, FlowSchedule):
        return _flow_plan(schedule, steps, guided, interval)
    rule = SAMPLERS[sampler]
    timesteps = rule.timesteps(schedule.num_train_timesteps, steps)
    sigmas = schedule.sigma_at(timesteps)
    final = 0.0 if rule.final_sigma_zero else float(schedule.sigmas[0])
    ends = np.append(sigmas[1:], final)
    share = 1.0 - timesteps / (schedule.num_train_timesteps - 1)
    return Plan(
        timesteps=timesteps.astype(np.float32),
        coefficients=np.stack([*_network(schedule, sigmas), *_rule(rule.order, sigmas, ends)], axis=1).astype(
            np.float32
        ),
        guided=_guided(guided, share, interval),
        start_scale=np.float32(np.sqrt(sigmas[0] ** 2 + rule.unit_variance_start)),
        final_scale=np.float32(1.0 / np.sqrt(final**2 + 1.0)),
    )


def _flow_plan(schedule: FlowSchedule, steps: int, guided: bool, interval: tuple[float, float]) -> Plan:
    """Along the flow denoised = x - sigma v, and Euler's x' = x + (sigma' - sigma) v is a mean of x and denoised."""
    sigmas = schedule.sigmas(steps)
    ones, zeros, decay = np.ones(steps), np.zeros(steps), np.append(sigmas[1:], 0.0) / sigmas
    return Plan(
        timesteps=(sigmas * schedule.num_train_timesteps).astype(np.float32),
        coefficients=np.stack([ones, ones, -sigmas, decay, 1.0 - decay, zeros], axis=1).astype(np.float32),
        guided=_guided(guided, 1.0 - sigmas, interval),
        start_scale=np.float32(1.0),
        final_scale=np.float32(1.0),
    )


def _guided(guided: bool, share: Vector, interval: tuple[float, float]) -> NDArray[np.bool_]:
    """In which steps guidance applies; `share` is how far along the schedule each step is."""
    return guided & (share >= interval[0]) & ((share < interval[1]) | (interval[1] >= 1.0))


def _network(schedule: NoiseSchedule, sigmas: Vector) -> tuple[Vector, Vector, Vector]:
    """c_in, skip and out: the parameterisation as a wrapper to one contract, (x, sigma) -> denoised."""
    variance = sigmas**2 + 1.0
    if schedule.prediction_type == "epsilon":
        return 1.0 / np.sqrt(variance), np.ones_like(sigmas), -sigmas
    if schedule.prediction_type == "v_prediction":  # Salimans and Ho 2022, arXiv 2202.00512
        return 1.0 / np.sqrt(variance), 1.0 / variance, -sigmas / np.sqrt(variance)
    raise InvalidInput("PREDICTION_TYPE", f"unknown prediction type {schedule.prediction_type!r}")


def _rule(order: int, sigmas: Vector, ends: Vector) -> tuple[Vector, Vector, Vector]:
    """decay, gain and memory of every step."""
    decay = ends / sigmas
    memory = np.zeros_like(sigmas)
    if order == 2 and len(sigmas) > 2:
        # h is the step in log sigma; the first step has no memory, the last goes to sigma 0 and takes none
        h = np.log(sigmas[:-1] / sigmas[1:])
        memory[1:-1] = -(1.0 - decay[1:-1]) * h[1:] / (2.0 * h[:-1])
    return decay, 1.0 - decay - memory, memory
