"""Measured batch sizes: the knee, what is made of it, and that only what fits this machine and graph is used."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository

from captory_engine import profiles
from captory_engine.assembly import EngineConfig, num_lanes, open_sessions
from captory_engine.errors import OutOfMemory
from captory_engine.family import LocatedFamily, find_family
from captory_engine.profiles import Curve, cache_path, fitting, load, measure, measured, save
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.fake import Call, FakeSession


def curve(ms_per_row: dict[int, float]) -> Curve:
    return Curve("unet", "ab", "onnx", 2, "x", ms_per_row)


def unet(max_batch: int = 16) -> FakeSession:
    specs = [TensorSpec("x", np.dtype(np.float32), (4,))]
    return FakeSession("unet", specs, specs, max_batch=max_batch)


@pytest.fixture
def located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocatedFamily:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return find_family(fake_repository(tmp_path), "")


def test_the_knee_is_the_smallest_batch_that_is_nearly_the_best() -> None:
    assert curve({1: 20.0, 4: 10.7, 8: 10.0, 16: 10.1}).knee == 4
    assert curve({1: 20.0, 4: 10.9, 8: 10.0, 16: 10.1}).knee == 8
    assert curve({1: 5.0, 2: 6.0}).knee == 1


def test_a_batch_that_makes_things_slower_is_never_used() -> None:
    assert curve({1: 5.0, 8: 4.0, 32: 6.0}).applied(Profile(32)).max_rows == 8


def test_a_stage_keeps_its_least_batch() -> None:
    assert curve({1: 5.0, 8: 5.0}).applied(Profile(32, min_rows=8)).max_rows == 8
    assert curve({1: 9.0, 12: 5.0}).applied(Profile(32, min_rows=8)).max_rows == 16


def test_bulk_rides_with_interactive_work_as_far_as_a_step_hardly_notices() -> None:
    flat, parallel = {1: 2.0, 2: 2.0, 4: 2.0, 8: 2.0}, {1: 8.0, 2: 4.0, 4: 2.0, 8: 1.1, 16: 1.0}
    assert curve(flat).applied(Profile(8)).mixed_rows == 4
    assert curve(parallel).applied(Profile(8)).mixed_rows == 16
    assert curve(flat | {6: 2.0}).applied(Profile(8)).mixed_rows == 6


def test_a_point_is_measured_for_every_batch_that_the_session_takes() -> None:
    session = unet(max_batch=8)
    found = measure("unet", session, 0, 2, num_passes=1, min_s=0.0)
    assert list(found.ms_per_row) == [1, 2, 4, 8][: len(found.ms_per_row)]
    assert (found.digest, found.backend, found.num_lanes) == (session.digest, "fake", 2)
    assert max(session.batches) <= 8


def test_a_batch_that_does_not_fit_into_memory_is_the_last_that_is_tried() -> None:
    def fault(call: Call) -> None:
        if call.batch > 4:
            raise OutOfMemory("OUT_OF_MEMORY", "too many rows")

    session = unet(max_batch=64)
    session.faults.append(fault)
    assert max(measure("unet", session, 0, 1, num_passes=1, min_s=0.0).ms_per_row) <= 4


def test_only_the_same_graph_backend_shape_and_lanes_fit(caplog: pytest.LogCaptureFixture) -> None:
    session = unet()
    mine = measure("unet", session, 0, 2, num_passes=1, min_s=0.0)
    others = [replace(mine, **{name: "other"}) for name in ("digest", "backend", "shape", "model")]
    with caplog.at_level(logging.WARNING):
        assert fitting([*others, replace(mine, num_lanes=1)], {"unet": session}, 2) == {}
    assert len(caplog.records) == 4  # of a graph that is not open nothing is said
    assert fitting([mine], {"unet": session}, 2) == {"unet": mine}


@pytest.mark.parametrize("text", ["", "{}", "[{}]", '[{"model": "unet"}]', "\x00", "[" * 10_000])
def test_a_file_that_is_no_profile_is_not_used(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "picto.json"
    path.write_text(text)
    assert load(path) == []
    assert "not used" in caplog.text


@pytest.mark.parametrize("ms_per_row", [{}, {0: 1.0}, {1: 0.0}, {1: float("inf")}])
def test_impossible_figures_are_not_used(tmp_path: Path, ms_per_row: dict[int, float]) -> None:
    save(tmp_path / "picto.json", [curve(ms_per_row)])
    assert load(tmp_path / "picto.json") == []


def test_what_is_missing_is_measured_once(located: LocatedFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(located.root, backend="fake")
    sessions = open_sessions(located.root, located.family, config)
    path = cache_path(located.family.name, "fake", 1)
    assert measured(path, located.family, sessions, 1, may_measure=False) == {}
    first = measured(path, located.family, sessions, num_lanes(config), may_measure=True)
    assert list(first) == ["vision", "caption", "write", "text", "denoise", "vae"]
    monkeypatch.setattr(profiles, "measure", None)  # a second measurement would fail
    assert measured(path, located.family, sessions, 1, may_measure=True) == first
    assert load(path) == list(first.values())


def test_what_is_not_open_this_time_is_kept_for_the_next(
    located: LocatedFamily, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(located.root, backend="fake")
    sessions = open_sessions(located.root, located.family, config)
    path = cache_path(located.family.name, "fake", 1)
    whole = measured(path, located.family, sessions, 1, may_measure=True)
    save(path, [curve for stage, curve in whole.items() if stage != "vae"])
    remote = located.family.model_copy(update={"captioner": None, "writer": None})
    here = open_sessions(located.root, remote, config)
    assert list(measured(path, remote, here, 1, may_measure=True)) == ["text", "denoise", "vae"]
    assert {one.model for one in load(path)} == {one.model for one in whole.values()}
    assert "not used" not in caplog.text


def test_a_cache_that_cannot_be_written_costs_the_next_measurement_only(
    located: LocatedFamily, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    sessions = open_sessions(located.root, located.family, EngineConfig(located.root, backend="fake"))
    assert measured(cache_path("picto", "fake", 1), located.family, sessions, 1, may_measure=True)
    assert "cannot be kept" in caplog.text
