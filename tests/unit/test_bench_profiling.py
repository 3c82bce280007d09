"""`captory bench profile`: what is measured, printed and kept."""

import json
from pathlib import Path

import pytest
from families import fake_repository
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.profile import measure as profiling
from captory_engine import profiles

STAGES = ["vision", "caption", "write", "text", "denoise", "vae"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(profiling, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(profiles, "TOO_SLOW", float("inf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake_repository(tmp_path)


def test_the_command_prints_json_and_tables_and_keeps_what_it_measured(repository: Path, tmp_path: Path) -> None:
    options = ["profile", "--repository", str(repository), "--backend", "fake"]
    out = tmp_path / "profile.json"
    told = CliRunner().invoke(bench, [*options, "--json", "--out", str(out)])
    figures = json.loads(told.stdout)
    assert list(figures["curves"]) == STAGES
    assert figures == json.loads(out.read_text())
    assert figures["machine"]["cpus"] >= 1
    [kept] = (tmp_path / "cache").rglob("*.json")
    assert [curve.ms_per_row for curve in profiles.load(kept)] == [
        {int(rows): ms for rows, ms in curve["ms_per_row"].items()} for curve in figures["curves"].values()
    ]
    table = CliRunner().invoke(bench, options)
    assert table.exit_code == 0
    assert all(stage in table.stdout for stage in STAGES)


def test_a_missing_repository_ends_with_words(tmp_path: Path) -> None:
    told = CliRunner().invoke(bench, ["profile", "--repository", str(tmp_path / "nowhere")])
    assert told.exit_code == 1
    assert "no model repository" in told.stderr
