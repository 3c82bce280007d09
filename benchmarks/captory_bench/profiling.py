"""`captory bench profile`: every graph alone, throughput against rows a batch. The curve's knee is the best batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from captory_engine.family import Family, find_family
from captory_engine.repository import open_model
from captory_engine.sessions.base import Array, Session, TensorSpec
from captory_engine.sessions.options import SessionOptions, available_cpus
from captory_engine.sessions.registry import open_session

ROWS = (1, 2, 4, 8, 16, 32, 64)
MIN_SECONDS = 0.5  # of measuring a point, in all passes
NUM_PASSES = 3
MAX_RUNS = 200
KNEE = 0.95  # of the best throughput


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds a row of one graph, by rows a batch."""

    stage: str
    model: str
    ms_per_row: dict[int, float]

    @property
    def knee(self) -> int:
        """The smallest batch within `KNEE` of the best throughput."""
        best = min(self.ms_per_row.values())
        return min(rows for rows, ms in self.ms_per_row.items() if best / ms >= KNEE)


def profile(repository: Path, family: str = "", *, backend: str = "onnx", num_threads: int = 0) -> list[Curve]:
    """Measure every graph of the family in pipeline order. Raises `BadModel`."""
    root, found = find_family(repository, family)
    options = SessionOptions(num_threads=num_threads or available_cpus())
    curves = []
    for stage, (model, positions) in _stages(found).items():
        session = open_session(backend, open_model(root, model), options)
        curves.append(Curve(stage, model, _measure(session, positions)))
        session.close()
    return curves


def _stages(family: Family) -> dict[str, tuple[str, int]]:
    """By stage, its model and the positions of its cache, 0 where it has none."""
    captioner, writer, painter = family.captioner, family.writer, family.painter
    writing = {"write": (writer.decoder, writer.max_positions)} if writer else {}
    return {
        "vision": (captioner.vision, 0),
        "caption": (captioner.decoder, captioner.max_positions),
        **writing,
        "text": (painter.text_encoder, 0),
        "denoise": (painter.denoiser, 0),
        "vae": (painter.vae_decoder, 0),
    }


def _measure(session: Session, positions: int) -> dict[int, float]:
    """Medians over passes that visit all batch sizes in turn, so that a slow moment harms none alone."""
    batches = {rows: _inputs(session, rows, positions) for rows in ROWS if rows <= session.max_batch}
    points: dict[int, list[float]] = {rows: [] for rows in batches}
    for _ in range(NUM_PASSES):
        for rows, inputs in batches.items():
            points[rows].append(_ms_per_row(session, inputs, rows))
    return {rows: median(values) for rows, values in points.items()}


def _ms_per_row(session: Session, inputs: dict[str, Array], rows: int) -> float:
    session.run(inputs)
    num_runs, started, spent_s = 0, time.perf_counter(), 0.0
    while num_runs == 0 or (spent_s < MIN_SECONDS / NUM_PASSES and num_runs < MAX_RUNS):
        session.run(inputs)
        num_runs, spent_s = num_runs + 1, time.perf_counter() - started
    return 1000 * spent_s / (num_runs * rows)


def _inputs(session: Session, rows: int, positions: int) -> dict[str, Array]:
    """One batch of plausible values: a full cache, one new token a row."""
    rng = np.random.default_rng(rows)
    return {spec.name: _values(spec, rows, positions, rng) for spec in session.inputs}


def _values(spec: TensorSpec, rows: int, positions: int, rng: np.random.Generator) -> Array:
    dynamic = positions if spec.name.startswith("past_") else 1
    shape = (rows, *(dynamic if size == -1 else size for size in spec.shape))
    if np.issubdtype(spec.dtype, np.integer):
        return np.ones(shape, spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)
