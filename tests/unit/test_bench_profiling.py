"""Throughput against batch size: which points are measured, and where the knee is."""

import json
from pathlib import Path

import pytest
from families import fake_repository
from typer.testing import CliRunner

from captory_bench import profiling
from captory_bench.commands import bench
from captory_bench.profiling import Curve

STAGES = ["vision", "caption", "write", "text", "denoise", "vae"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(profiling, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(profiling, "ROWS", (1, 4, 128))
    return fake_repository(tmp_path)


def test_the_knee_is_the_smallest_batch_that_is_nearly_the_best() -> None:
    assert Curve("denoise", "unet", {1: 20.0, 4: 10.4, 8: 10.0, 16: 10.1}).knee == 4
    assert Curve("denoise", "unet", {1: 5.0, 2: 6.0}).knee == 1


def test_every_graph_is_measured_up_to_its_largest_batch(repository: Path) -> None:
    curves = profiling.profile(repository, backend="fake")
    assert [curve.stage for curve in curves] == STAGES
    assert all(list(curve.ms_per_row) == [1, 4] for curve in curves)
    assert all(ms > 0 for curve in curves for ms in curve.ms_per_row.values())


def test_the_command_prints_json_and_tables(repository: Path, tmp_path: Path) -> None:
    options = ["profile", "--repository", str(repository), "--backend", "fake"]
    out = tmp_path / "profile.json"
    told = CliRunner().invoke(bench, [*options, "--json", "--out", str(out)])
    figures = json.loads(told.stdout)
    assert list(figures["ms_per_row"]) == STAGES
    assert figures == json.loads(out.read_text())
    assert figures["machine"]["cpus"] >= 1
    table = CliRunner().invoke(bench, options)
    assert table.exit_code == 0
    assert all(stage in table.stdout for stage in STAGES)


def test_a_missing_repository_ends_with_words(tmp_path: Path) -> None:
    told = CliRunner().invoke(bench, ["profile", "--repository", str(tmp_path / "nowhere")])
    assert told.exit_code == 1
    assert "no model repository" in told.stderr
