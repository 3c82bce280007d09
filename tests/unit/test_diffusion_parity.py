"""Our samplers against diffusers' schedulers, step for step, on the same network and noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.schedules import FlowSchedule, NoiseSchedule, Schedule
from captory_engine.diffusion.step import advance

torch = pytest.importorskip("torch", reason="parity needs torch and diffusers (make test installs them)")
diffusers = pytest.importorskip("diffusers")

MIX = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32) * 0.3


def network(x: Any, timestep: float) -> Any:
    return np.tanh(np.einsum("ij,bjhw->bihw", MIX, x) + np.float32(timestep) / 1000).astype(np.float32)


def reference_scheduler(sampler: str, base: dict[str, Any]) -> Any:
    if sampler == "ddim":
        extra = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
        return diffusers.DDIMScheduler(**base, **extra)
    if sampler == "euler":
        return diffusers.EulerDiscreteScheduler(**base)
    return diffusers.DPMSolverMultistepScheduler(**base)


def reference_image(sampler: str, base: dict[str, Any], noise: Any, steps: int) -> Any:
    scheduler = reference_scheduler(sampler, base)
    scheduler.set_timesteps(steps)
    x = torch.tensor(noise) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, timestep).numpy(), float(timestep))
        x = scheduler.step(torch.tensor(output), timestep, x).prev_sample
    return x.numpy()


def planned_image(sampler: str, schedule: Schedule, noise: Any, steps: int) -> Any:
    plan = make_plan(schedule, sampler, steps, guided=False)
    x, denoised = noise * plan.start_scale, np.zeros_like(noise)
    for step in range(plan.num_steps):
        row = plan.coefficients[step : step + 1]
        x, denoised = advance(x, network(x * row[0, 0], plan.timesteps[step]), denoised, row)
    return x * plan.final_scale


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 15, 20, 50])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp-2m"])
def test_equals_diffusers(sampler: str, steps: int, beta_schedule: str, prediction_type: str) -> None:
    base = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": beta_schedule,
        "prediction_type": prediction_type,
    }
    noise = np.random.default_rng(steps).normal(size=(1, 8, 4, 4)).astype(np.float32)
    expected = reference_image(sampler, base, noise, steps)
    found = planned_image(sampler, NoiseSchedule(**base), noise, steps)
    # diffusers' Euler keeps x in float32 at the scale of its first sigma, 20,000 for squared cosine betas
    rounding = 3e-7 * NoiseSchedule(**base).sigmas[-1] if sampler == "euler" else 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=max(3e-5 * max(1.0, np.abs(expected).max()), rounding))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 28, 50])
def test_the_flow_equals_diffusers(steps: int, shift: float) -> None:
    noise = np.random.default_rng(steps).normal(size=(1, 8, 4, 4)).astype(np.float32)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    x = torch.tensor(noise)
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.tensor(network(x.numpy(), float(timestep))), timestep, x).prev_sample
    found = planned_image("flow-euler", FlowSchedule(shift=shift), noise, steps)
    np.testing.assert_allclose(found, x.numpy(), rtol=0, atol=3e-5 * max(1.0, np.abs(found).max()))
