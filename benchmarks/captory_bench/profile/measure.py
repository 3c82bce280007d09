"""`captory bench profile`: every graph alone, throughput against rows a batch, kept for the servers of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from captory_engine.assembly import EngineConfig, num_lanes, open_sessions
from captory_engine.family import find_family
from captory_engine.profiles import Curve, cache_path, measure, save, stages

NUM_PASSES = 5
MIN_SECONDS = 0.2  # a point and pass


class Profiled(NamedTuple):
    """Curves by stage, in pipeline order, and where they are kept."""

    curves: dict[str, Curve]
    kept_at: Path


def profile(config: EngineConfig) -> Profiled:
    """Measure every graph of the family as a server of this configuration runs it. Raises `BadModel`, `OSError`."""
    root, family = find_family(config.repository, config.family)
    sessions = open_sessions(root, family, config)
    measured = {}
    for stage, (model, positions) in stages(family).items():
        session, lanes = sessions[model], num_lanes(config)
        measured[stage] = measure(model, session, positions, lanes, num_passes=NUM_PASSES, min_s=MIN_SECONDS)
    path = cache_path(family.name, config.backend, num_lanes(config))
    save(path, measured.values())
    return Profiled(measured, path)
