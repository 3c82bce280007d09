"""How large a stage's batches should be: measured once a graph, machine and setting, kept, and used while it fits."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from captory_engine.errors import OutOfMemory
from captory_engine.family import Family
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import Array, Session, TensorSpec

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 12, 16, 32, 64)
KNEE = 0.93  # of the best throughput
TOO_SLOW = 1.3  # times the best milliseconds a row: larger batches are not tried
MAX_BATCH_S = 2.0  # after one that took longer, none larger is tried
MIXED_DELAY = 3.0  # what bulk work that rides along may cost an interactive step of two rows
MAX_FILE_BYTES = 1 << 20

PositiveRows = Annotated[int, Field(ge=1, le=1 << 16)]
PositiveMs = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds a row of one graph by rows a batch, all lanes busy; and what it was measured on."""

    model: str
    digest: str
    backend: str
    num_lanes: int
    shape: str
    ms_per_row: Annotated[dict[PositiveRows, PositiveMs], Field(min_length=1, max_length=64)]

    @property
    def knee(self) -> int:
        """The smallest batch within `KNEE` of the best throughput."""
        best = min(self.ms_per_row.values())
        return min(rows for rows, ms in self.ms_per_row.items() if best / ms >= KNEE)

    def fits(self, session: Session, num_lanes: int) -> bool:
        """Whether it was measured on this graph, backend, machine and number of lanes."""
        own = (self.digest, self.backend, self.num_lanes, self.shape)
        return own == (session.digest, session.backend, num_lanes, _shape(session))

    def applied(self, profile: Profile) -> Profile:
        """The profile with what was measured; batches are of whole least ones, as the stage has them."""
        pair_ms = 2 * self.ms_per_row.get(2, self.ms_per_row[self.knee])
        quick = [rows for rows, ms in self.ms_per_row.items() if rows * ms <= MIXED_DELAY * pair_ms]
        return replace(
            profile,
            max_rows=-(-self.knee // profile.min_rows) * profile.min_rows,
            mixed_rows=max([profile.min_rows, *quick]),
            row_cost=self.ms_per_row[self.knee],
        )


_CURVES = TypeAdapter(list[Curve])


def cache_path(family: str, backend: str, num_lanes: int) -> Path:
    """Where the curves of a family on a backend are kept for this user."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "captory" / "profiles" / f"{family}-{backend}-{num_lanes}.json"


def load(path: Path) -> list[Curve]:
    """The curves that were kept; none, and a warning, when the file is not what `save` writes."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("too large")
        return _CURVES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, ValidationError) as error:
        log.warning("the profile %s cannot be read and is not used: %s", path, type(error).__name__)
        return []


def save(path: Path, curves: Iterable[Curve]) -> None:
    """Keep curves. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(_CURVES.dump_json(list(curves), indent=1))
    draft.replace(path)


def fitting(curves: Iterable[Curve], sessions: Mapping[str, Session], num_lanes: int) -> dict[str, Curve]:
    """By model, the curves of these sessions; another machine's or another digest's is told and not used."""
    used = {}
    for curve in curves:
        if curve.model not in sessions:  # what it does is done elsewhere this time
            continue
        if curve.fits(sessions[curve.model], num_lanes):
            used[curve.model] = curve
        else:
            log.warning("the profile of %s is of another graph, machine or setting and is not used", curve.model)
    return used


def measured(
    path: Path, family: Family, sessions: Mapping[str, Session], num_lanes: int, *, may_measure: bool
) -> dict[str, Curve]:
    """By stage, the curves kept at `path` for these sessions; what is missing is measured now, if it may be."""
    started_s = time.monotonic()
    kept = load(path)
    known = fitting(kept, sessions, num_lanes)
    if may_measure and (missing := [stage for stage in stages(family).values() if stage[0] not in known]):
        new = {model: measure(model, sessions[model], positions, num_lanes) for model, positions in missing}
        known |= new
        keep(path, [*(curve for curve in kept if curve.model not in sessions), *known.values()])
        log.info("measured batch sizes of %d graphs in %.1f s", len(new), time.monotonic() - started_s)
    return {stage: known[model] for stage, (model, _) in stages(family).items() if model in known}


def keep(path: Path, curves: Iterable[Curve]) -> None:
    """Save curves, or say why that cannot be: they are measured anew the next time."""
    try:
        save(path, curves)
    except OSError as error:
        log.warning("the profile cannot be kept at %s: %s", path, error.strerror)


def stages(family: Family) -> dict[str, tuple[str, int]]:
    """By stage, in pipeline order, its model and the positions of its cache, 0 where it has none."""
    captioner, writer, painter = family.captioner, family.writer, family.painter
    looking = {"vision": (captioner.vision, 0)} if captioner else {}
    words = {"caption": captioner, "write": writer}
    return {
        **looking,
        **{stage: (part.decoder, part.max_positions) for stage, part in words.items() if part},
        "text": (painter.text_encoder, 0),
        "denoise": (painter.denoiser, 0),
        "vae": (painter.vae_decoder, 0),
    }


def measure(
    model: str, session: Session, positions: int, num_lanes: int, *, num_passes: int = 3, min_s: float = 0.05
) -> Curve:
    """The best of passes that visit all batch sizes in turn: what else runs on the machine can only add time.

    `min_s` is spent on a point and pass; batches grow until they no longer pay.
    """
    points: dict[int, list[float]] = {}
    with ThreadPoolExecutor(num_lanes) as lanes:
        for _ in range(num_passes):
            for rows, ms in _pass(session, positions, num_lanes, lanes, min_s):
                points.setdefault(rows, []).append(ms)
    curve = {rows: min(values) for rows, values in points.items()}
    return Curve(model, session.digest, session.backend, num_lanes, _shape(session), curve)


def _pass(
    session: Session, positions: int, num_lanes: int, lanes: ThreadPoolExecutor, min_s: float
) -> Iterator[tuple[int, float]]:
    best = float("inf")
    for rows in (rows for rows in ROWS if rows <= session.max_batch):
        inputs = _inputs(session, rows, positions)
        try:
            longest_s = 1 / _runs_per_s(session, inputs, 0.0)  # the first run, which is not counted
        except OutOfMemory:
            return
        rates = list(lanes.map(lambda _, inputs=inputs: _runs_per_s(session, inputs, min_s), range(num_lanes)))
        ms = 1000 / (rows * sum(rates))
        yield rows, ms
        best = min(best, ms)
        if ms > TOO_SLOW * best or longest_s > MAX_BATCH_S:
            return


def _runs_per_s(session: Session, inputs: dict[str, Array], min_s: float) -> float:
    num_runs, started_s, spent_s = 0, time.perf_counter(), 0.0
    while num_runs == 0 or spent_s < min_s:
        session.run(inputs)
        num_runs, spent_s = num_runs + 1, time.perf_counter() - started_s
    return num_runs / spent_s


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


def _shape(session: Session) -> str:
    return "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in session.inputs)


def record(curve: Curve) -> dict[str, object]:
    """A curve as plain values, with its knee."""
    return {**asdict(curve), "knee": curve.knee}
