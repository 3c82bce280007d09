"""One denoising step over a batch of rows, each at its own place of its own plan; NumPy arrays or a session's own."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class StepResult(NamedTuple):
    """x and denoised after the step, each [B, C, H, W]."""

    x: Array
    denoised: Array


def guide(conditional: Array, unconditional: Array, scale: Array) -> Array:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): scale is per row, [B]."""
    return unconditional + per_row(scale, conditional) * (conditional - unconditional)


def advance(x: Array, output: Array, previous: Array, coefficients: Array) -> StepResult:
    """Apply one step of every row's plan. x, output, previous: [B, C, H, W]; coefficients: [B, 6]."""
    _, skip, out, decay, gain, memory = (per_row(column, x) for column in coefficients.T)
    denoised = skip * x + out * output
    return StepResult(decay * x + gain * denoised + memory * previous, denoised)


def per_row(values: Array, like: Array) -> Array:
    """Reshape [B] so that it multiplies [B, ...]."""
    return values.reshape((-1, *([1] * (like.ndim - 1))))
