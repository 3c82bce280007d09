"""Denoising of a fixed batch, as a request batcher runs it: together from the first step to the last.

Jobs may differ in their number of steps. Then either every job is computed until the longest ends (a fixed batch), or
jobs that have ended leave it (a shrinking batch). With equal steps the two are the same: the bare loop.
Jobs may differ in guidance. If one of a batch is guided, the conditional and the unconditional row of every job are
computed at every step, as `StableDiffusionPipeline` does; a batch without a guided job computes conditional rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captory_bench.measuring.graphs import Graphs
from captory_bench.measuring.workload import UNGUIDED, Painting
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
    ordered = [jobs[index] for index in order]
    plans = [_plan(graphs, job) for job in ordered]
    tables = _tables(plans, [guidance_scale(graphs, job) for job in ordered])
    noise = [gaussian_noise(job.seed, graphs.latent_shape) for job in ordered]
    x = np.stack([unit * plan.start_scale for unit, plan in zip(noise, plans, strict=True)])
    guided = any(plan.guided.any() for plan in plans)
    denoised, context = np.zeros_like(x), _Context(text[order], negative if guided else None)
    for step in range(len(tables.timesteps)):
        live = int(tables.live[step].sum())
        rows = live if shrinking else len(jobs)
        here = tables.coefficients[step, :rows]
        sample = x[:rows] * here[:, 0].reshape(-1, 1, 1, 1)
        output = _predict(graphs, sample, tables.timesteps[step, :rows], tables.scales[step, :rows], context)
        x[:rows], denoised[:rows] = advance(x[:rows], output, denoised[:rows], here)
        _count(counts, live + int((tables.scales[step] > UNGUIDED).sum()), rows * (2 if guided else 1))
    latents = np.empty_like(x)
    latents[order] = x * np.array([plan.final_scale for plan in plans]).reshape(-1, 1, 1, 1)
    return latents


def guidance_scale(graphs: Graphs, job: Painting) -> float:
    """The scale that a job is painted with; `UNGUIDED` where it asks for no more."""
    given = graphs.painter.defaults.guidance_scale if job.guidance_scale is None else job.guidance_scale
    return max(UNGUIDED, given)


class _Context:
    """Text states of the first `rows` jobs, then as many of the empty prompt; made again only when `rows` changes."""

    def __init__(self, text: Array, negative: Array | None) -> None:
        self._text = text
        self._negative = negative
        self._made: Array = text[:0]

    @property
    def guided(self) -> bool:
        """Whether the batch has unconditional rows."""
        return self._negative is not None

    def of(self, rows: int) -> Array:
        """The states that a forward pass over `rows` jobs takes."""
        if self._negative is None:
            return self._text[:rows]
        if len(self._made) != 2 * rows:
            self._made = np.concatenate([self._text[:rows], np.repeat(self._negative, rows, axis=0)])
        return self._made


def _predict(graphs: Graphs, sample: Array, timesteps: Array, scales: Array, context: _Context) -> Array:
    """The network's output for every job, guided where the batch is."""
    repeats = 2 if context.guided else 1
    inputs = {
        "sample": np.concatenate([sample] * repeats),
        "timestep": np.tile(timesteps, repeats),
        "encoder_hidden_states": context.of(len(sample)),
    }
    output: Array = padded(graphs.denoiser, inputs)[0]["out_sample"]
    if not context.guided:
        return output
    conditional, unconditional = np.split(output, 2)
    guided = guide(conditional, unconditional, scales)
    return np.where(scales.reshape(-1, 1, 1, 1) > UNGUIDED, guided, conditional)


def _plan(graphs: Graphs, job: Painting) -> Plan:
    sampler = job.sampler or graphs.painter.defaults.sampler
    guided = guidance_scale(graphs, job) > UNGUIDED
    return make_plan(graphs.schedule, sampler, job.steps, guided, job.guidance_interval)


class _Tables(NamedTuple):
    """By step and job: coefficients [S, B, 6], timesteps, guidance scales and whether the job goes on, all [S, B]."""

    coefficients: Array
    timesteps: Array
    scales: Array
    live: Array


def _tables(plans: Sequence[Plan], scales: Sequence[float]) -> _Tables:
    """The tables of plans of up to S steps, for jobs with these guidance scales."""
    shape = max(plan.num_steps for plan in plans), len(plans)
    tables = _Tables(
        np.tile(_REST, (*shape, 1)), np.zeros(shape, np.float32), np.full(shape, UNGUIDED, np.float32), np.zeros(shape)
    )
    for row, (plan, scale) in enumerate(zip(plans, scales, strict=True)):
        here = slice(plan.num_steps), row
        tables.coefficients[here] = plan.coefficients
        tables.timesteps[here] = plan.timesteps
        tables.scales[here] = np.where(plan.guided, scale, UNGUIDED)
        tables.live[here] = 1
    return tables


def _count(counts: StageCounts, useful: int, computed: int) -> None:
    counts.batches += 1
    counts.useful_rows += useful
    counts.computed_rows += computed
    counts.batch_rows[computed] += 1
