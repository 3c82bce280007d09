"""Denoising of a fixed batch, as a request batcher runs it: together from the first step to the last.

Rows may differ in their number of steps. Then either every row is computed until the longest ends (a fixed batch), or
rows that have ended leave it (a shrinking batch). With equal steps the two are the same: the bare loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captory_bench.graphs import Graphs
from captory_bench.workload import Painting
from captory_engine.device import StageCounts
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.samplers import Plan, make_plan
from captory_engine.diffusion.step import advance, guide
from captory_engine.engines.batching import padded

Array = NDArray[Any]
# One step that changes nothing: c_in, skip, out, decay, gain, memory. Rows that have ended go on with it.
_REST = np.array([1, 0, 0, 1, 0, 0], np.float32)


def denoise(
    graphs: Graphs,
    jobs: Sequence[Painting],
    text: Array,
    negative: Array,
    counts: StageCounts,
    *,
    shrinking: bool = False,
) -> Array:
    """Latents [B, C, H, W] of a batch of jobs with text [B, T, D] and the empty prompt's states [1, T, D].

    `counts` is increased by the forward passes and their rows, useful and computed.
    """
    order = np.argsort([-job.steps for job in jobs], kind="stable")  # longest first: what leaves is a slice
    plans = [_plan(graphs, jobs[index].steps) for index in order]
    num_steps = np.array([plan.num_steps for plan in plans])
    coefficients, timesteps = _tables(plans)
    noise = [gaussian_noise(jobs[index].seed, graphs.latent_shape) for index in order]
    x = np.stack([unit * plan.start_scale for unit, plan in zip(noise, plans, strict=True)])
    denoised, context = np.zeros_like(x), _Context(text[order], negative if graphs.guided else None)
    for step in range(num_steps.max()):
        live = int((num_steps > step).sum())
        rows = live if shrinking else len(jobs)
        here = coefficients[step, :rows]
        output = _predict(graphs, x[:rows] * here[:, 0].reshape(-1, 1, 1, 1), timesteps[step, :rows], context)
        x[:rows], denoised[:rows] = advance(x[:rows], output, denoised[:rows], here)
        _count(counts, live, rows, 2 if graphs.guided else 1)
    latents = np.empty_like(x)
    latents[order] = x * np.array([plan.final_scale for plan in plans]).reshape(-1, 1, 1, 1)
    return latents


class _Context:
    """Text states of the first `rows` jobs, then as many of the empty prompt; made again only when `rows` changes."""

    def __init__(self, text: Array, negative: Array | None) -> None:
        self._text = text
        self._negative = negative
        self._made: Array = text[:0]

    def of(self, rows: int) -> Array:
        """The states that a forward pass over `rows` jobs takes."""
        if self._negative is None:
            return self._text[:rows]
        if len(self._made) != 2 * rows:
            self._made = np.concatenate([self._text[:rows], np.repeat(self._negative, rows, axis=0)])
        return self._made


def _predict(graphs: Graphs, sample: Array, timesteps: Array, context: _Context) -> Array:
    """The network's output for every row, guided where the family guides."""
    scale, repeats = graphs.painter.defaults.guidance_scale, 2 if graphs.guided else 1
    inputs = {
        "sample": np.concatenate([sample] * repeats),
        "timestep": np.tile(timesteps, repeats),
        "encoder_hidden_states": context.of(len(sample)),
    }
    output: Array = padded(graphs.denoiser, inputs)[0]["out_sample"]
    if not graphs.guided:
        return output
    conditional, unconditional = np.split(output, 2)
    return guide(conditional, unconditional, np.full(len(sample), scale, np.float32))


def _plan(graphs: Graphs, steps: int) -> Plan:
    return make_plan(graphs.schedule, graphs.painter.defaults.sampler, steps, graphs.guided)


def _tables(plans: Sequence[Plan]) -> tuple[Array, Array]:
    """Coefficients [S, B, 6] and timesteps [S, B] of plans of up to S steps."""
    num_steps = max(plan.num_steps for plan in plans)
    coefficients = np.tile(_REST, (num_steps, len(plans), 1))
    timesteps = np.zeros((num_steps, len(plans)), np.float32)
    for row, plan in enumerate(plans):
        coefficients[: plan.num_steps, row] = plan.coefficients
        timesteps[: plan.num_steps, row] = plan.timesteps
    return coefficients, timesteps


def _count(counts: StageCounts, live: int, rows: int, rows_a_job: int) -> None:
    counts.batches += 1
    counts.useful_rows += live * rows_a_job
    counts.computed_rows += rows * rows_a_job
    counts.batch_rows[rows * rows_a_job] += 1
