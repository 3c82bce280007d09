"""Step-level against request-level batching on one UNet: mixed steps, half of the images without guidance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captory_bench.gpu.jobs import GUIDANCE, task
from captory_bench.gpu.models import Model, build_unet, open_unet
from captory_bench.gpu.setup import Setup
from captory_bench.gpu.variants import Variant, attention, options_of, prepared
from captory_engine.device import Device
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.step import advance, guide, per_row
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.denoiser import TEXT, Denoiser, DenoiseTask
from captory_engine.scheduler import Profile
from captory_engine.sessions.torch import DTYPES, TorchSession

Latents = NDArray[Any]
# One step that changes nothing: c_in, skip, out, decay, gain, memory. Rows that have ended go on with it.
REST = np.array([1, 0, 0, 1, 0, 0], np.float32)
MAX_DIFFERENCE = 0.1  # of latents, relative: batches of another size round otherwise


class Arm(NamedTuple):
    """What came of one way to batch."""

    seconds: float
    latents: list[Latents]
    computed_rows: int


def compare(setup: Setup, model: Model, variant: Variant) -> dict[str, Any]:
    """Images/s of the three ways over the same images, rounds interleaved, and whether they painted the same."""
    buckets = tuple(rows for rows in (1, 2, 4, 6, 8, 12, 16, 24, 32) if rows <= setup.scale.mixed_rows)
    unet = prepared(build_unet(model, setup.device, DTYPES[setup.dtype]), variant)
    with attention(variant.attention):
        session = open_unet(model, unet, options_of(variant, setup, buckets))
        _warm_up(session, model, buckets)
        ways: dict[str, Callable[[], Arm]] = {
            "step_level": lambda: step_level(setup, session, _images(setup, model)),
            "request_level": lambda: request_level(setup, session, _images(setup, model), grouped=False),
            "request_level_grouped": lambda: request_level(setup, session, _images(setup, model), grouped=True),
        }
        rounds: list[dict[str, Arm]] = []
        for _ in range(setup.scale.rounds):
            if not rounds or setup.budget.allows(1.5 * sum(arm.seconds for arm in rounds[0].values())):
                rounds.append({name: way() for name, way in ways.items()})
        session.close()
    return _record(setup, model, variant, rounds)


def step_level(setup: Setup, session: TorchSession, tasks: Sequence[DenoiseTask]) -> Arm:
    """The engine's own device and denoiser: every image at its own step, rows join and leave at any."""
    device = Device([Denoiser(session, Profile(max_rows=setup.scale.mixed_rows), BatchRule())])
    started = time.perf_counter()
    latents = asyncio.run(_serve(device, tasks))
    return Arm(time.perf_counter() - started, latents, device.counts["denoise"].computed_rows)


def request_level(setup: Setup, session: TorchSession, tasks: Sequence[DenoiseTask], *, grouped: bool) -> Arm:
    """Batches stay together until their longest ends; grouped: of equal steps and guidance only."""
    started, computed = time.perf_counter(), 0
    latents: dict[int, Latents] = {}
    for batch in _batches(tasks, setup.scale.mixed_rows, grouped):
        painted, rows = _together(session, batch)
        computed += rows
        latents.update(zip((one.seed for one in batch), painted, strict=True))
    return Arm(time.perf_counter() - started, [latents[one.seed] for one in tasks], computed)


async def _serve(device: Device, tasks: Sequence[DenoiseTask]) -> list[Latents]:
    loop = asyncio.create_task(device.serve())
    latents = await asyncio.gather(*(device.submit("denoise", one) for one in tasks))
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    await device.close()
    return latents


def _batches(tasks: Sequence[DenoiseTask], max_rows: int, grouped: bool) -> list[list[DenoiseTask]]:
    groups: dict[Any, list[DenoiseTask]] = {}
    for one in tasks:
        key = (one.plan.num_steps, one.guidance_scale) if grouped else ()
        groups.setdefault(key, []).append(one)
    batches = []
    for group in groups.values():
        size = max_rows // (2 if _guided(group) else 1)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _guided(tasks: Sequence[DenoiseTask]) -> bool:
    return any(one.guidance_scale > 1.0 for one in tasks)


def _together(session: TorchSession, tasks: Sequence[DenoiseTask]) -> tuple[Latents, int]:
    """Latents [B, C, H, W] of one batch and the rows computed: all of them, to the end of the longest."""
    here, repeats = session.arrays.from_host, 2 if _guided(tasks) else 1
    x = here(np.stack([gaussian_noise(one.seed, one.shape) * one.plan.start_scale for one in tasks]))
    texts = [one.conditions[TEXT] for one in tasks]
    texts += [one.negative[TEXT] for one in tasks][: len(tasks) * (repeats - 1)]
    states, denoised, computed = here(np.stack(texts)), x * 0, 0
    scales = here(np.array([one.guidance_scale for one in tasks], np.float32))
    for step in range(max(one.plan.num_steps for one in tasks)):
        coefficients, timesteps = _column(tasks, step)
        rows = here(coefficients)
        sample = session.arrays.concatenate([x * per_row(rows[:, 0], x)] * repeats)
        inputs = {"sample": sample, "timestep": here(np.tile(timesteps, repeats)), "encoder_hidden_states": states}
        outputs, num_rows = padded(session, inputs)
        output, computed = outputs["out_sample"], computed + num_rows
        if repeats == 2:
            output = guide(output[: len(tasks)], output[len(tasks) :], scales)
        x, denoised = advance(x, output, denoised, rows)
    final = np.array([one.plan.final_scale for one in tasks])
    return session.arrays.to_host(x) * per_row(final, x), computed


def _column(tasks: Sequence[DenoiseTask], step: int) -> tuple[Latents, Latents]:
    """Every row's coefficients [B, 6] and timestep [B] at a step, or the rest where it has ended."""
    plans = [one.plan for one in tasks]
    coefficients = [plan.coefficients[step] if step < plan.num_steps else REST for plan in plans]
    timesteps = [plan.timesteps[min(step, plan.num_steps - 1)] for plan in plans]
    return np.stack(coefficients), np.array(timesteps, np.float32)


def _images(setup: Setup, model: Model) -> list[DenoiseTask]:
    """Steps in equal shares and shuffled, every other image of a step count without guidance."""
    num, choices = setup.scale.mixed_images, setup.scale.mixed_steps
    order = np.random.default_rng(0).permutation(num)
    kinds = [(choices[one % len(choices)], GUIDANCE if (one // len(choices)) % 2 else 1.0) for one in order]
    return [task(model, seed, steps, guidance) for seed, (steps, guidance) in enumerate(kinds)]


def _warm_up(session: TorchSession, model: Model, buckets: Sequence[int]) -> None:
    for rows in buckets:
        shapes = {
            "sample": (rows, *model.shape),
            "timestep": (rows,),
            "encoder_hidden_states": (rows, *model.text_shape),
        }
        session.run({name: session.arrays.zeros(shape, np.float32) for name, shape in shapes.items()})


def _record(setup: Setup, model: Model, variant: Variant, rounds: list[dict[str, Arm]]) -> dict[str, Any]:
    tasks = _images(setup, model)
    useful = sum(one.plan.num_steps * (2 if one.guidance_scale > 1.0 else 1) for one in tasks)
    ratios = {
        name: [arms[name].seconds / arms["step_level"].seconds for arms in rounds]
        for name in rounds[0]
        if name != "step_level"
    }
    difference = float(np.max([_difference(arms[name], arms["step_level"]) for arms in rounds for name in ratios]))
    return {
        "model": model.name,
        "variant": variant.name,
        "images": len(tasks),
        "steps": list(setup.scale.mixed_steps),
        "max_rows": setup.scale.mixed_rows,
        "rounds": len(rounds),
        "arms": {
            name: {
                "images_per_s": len(tasks) / median(arms[name].seconds for arms in rounds),
                "row_efficiency": useful / rounds[0][name].computed_rows,
            }
            for name in rounds[0]
        },
        "step_over": ratios,
        "checks": {"ok": difference <= MAX_DIFFERENCE, "difference": difference, "bound": MAX_DIFFERENCE},
    }


def _difference(one: Arm, other: Arm) -> float:
    """The worst image's mean absolute difference over the mean absolute value."""
    pairs = zip(one.latents, other.latents, strict=True)
    return float(np.max([np.abs(a - b).mean() / np.abs(b).mean() for a, b in pairs]))  # NaN stays NaN
