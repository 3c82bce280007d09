"""Images to be painted by a model of random weights: tasks of the engine, whose noise and text come from seeds."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from captory_bench.gpu.models import Model
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.schedules import NoiseSchedule
from captory_engine.engines.denoiser import TEXT, Denoiser, DenoiseTask

SCHEDULE = NoiseSchedule()
GUIDANCE = 5.0
NEGATIVE_SEED = 1 << 40


def task(model: Model, seed: int, steps: int, guidance: float = GUIDANCE) -> DenoiseTask:
    """One image by Euler's method."""
    return DenoiseTask(
        plan=make_plan(SCHEDULE, "euler", steps, guidance > 1.0),
        seed=seed,
        shape=model.shape,
        conditions={TEXT: gaussian_noise(NEGATIVE_SEED + 1 + seed, model.text_shape)},
        negative={TEXT: gaussian_noise(NEGATIVE_SEED, model.text_shape)},
        guidance_scale=guidance,
    )


def paint(engine: Denoiser, tasks: list[DenoiseTask]) -> list[NDArray[Any]]:
    """Latents of tasks of equal steps, all in one batch to their end. Raises the first task's error."""
    while not tasks[0].ended:
        engine.run(tasks)
    for one in tasks:
        engine.retire(one)
        if one.error is not None:
            raise one.error
    return [one.result for one in tasks]
