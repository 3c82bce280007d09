"""Growth and guidance: every value in every round, in turn, and what comes of the figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.growth.measure import Measured, Settings, measure
from captory_bench.growth.report import growth_tables, summarise
from captory_bench.guidance.measure import CONSTANT, INTERVALS, name_of
from captory_bench.guidance.measure import Measured as Guided
from captory_bench.guidance.report import summarise as summarise_guidance
from captory_bench.measuring.outcome import Agreement, Outcome, Times
from captory_bench.measuring.subject import Subject
from captory_engine.device import StageCounts
from captory_engine.repository import default_repository
from captory_training.evaluation import Evaluation, fresh_scenes

MACHINE = {"cpu": "", "cpus": 2, "threads": 2, "memory_gib": 8, "system": "", "python": "3", "versions": {}}
SAME = Agreement(8, 0, 0.0, 0)


async def test_a_tiny_run_of_all_sweeps() -> None:
    if not any(default_repository().glob("*/family.yaml")):
        pytest.skip("there is no embedded family here")
    said: list[str] = []
    settings = Settings(
        Subject(default_repository()),
        images=(4, 8),
        steps=(1, 2),
        clients=(1, 2),
        num_rounds=2,
        num_sweep=8,
        other_steps=1,
    )
    figures = summarise(await measure(settings, said.append))
    assert figures["checks"]["ok"]
    assert list(figures["images"]) == ["4", "8"]
    assert list(figures["steps"]) == list(figures["clients"]) == ["1", "2"]
    assert all(point["images_per_s"] > 0 for name in ("images", "steps", "clients") for point in figures[name].values())
    swept = [words.split(":")[1].strip() for words in said if "images:" in words]
    assert swept == ["4 images", "8 images", "8 images", "4 images"]
    assert growth_tables(figures | {"machine": MACHINE | {"load_average": [0.0, 0.0, 0.0]}})


def test_a_missing_image_spoils_the_figures() -> None:
    measured = Measured(8, [{4: 2.0}], [{1: 2.0}], [{1: 2.0}])
    painted = Outcome({"a": np.zeros((2, 2, 3), np.uint8)}, times=Times(1.0))
    assert measured.note("1 images", 1, painted, SAME) == 1.0
    assert summarise(measured)["checks"]["ok"]
    measured.note("2 images", 2, painted, SAME)
    assert not summarise(measured)["checks"]["ok"]


def read(num_right: int) -> Evaluation:
    """Four scenes, of which the oracle reads the first so many right."""
    scenes = fresh_scenes(4, 0)
    right = [
        {name: str(getattr(scene, name)) for name in ("kind", "colour", "background", "count")} for scene in scenes
    ]
    return Evaluation(scenes, [], [], [], [], [*right[:num_right], *[None] * (4 - num_right)])


def test_guidance_is_told_by_speed_within_a_round_and_quality_over_all() -> None:
    images = {str(index): np.zeros((2, 2, 3), np.uint8) for index in range(4)}

    def outcome(seconds: float, rows: int) -> Outcome:
        return Outcome(images, {}, {}, Times(seconds), StageCounts(1, rows, rows))

    other = INTERVALS[1]
    rounds = [{CONSTANT: outcome(2.0, 128), other: outcome(seconds, 96)} for seconds in (1.0, 1.6)]
    evaluations = [{CONSTANT: read(4), other: read(num)} for num in (4, 2)]
    figures = summarise_guidance(Guided(16, 2.0, rounds, evaluations, {"": SAME}))
    found = figures["intervals"][name_of(other)]
    assert found["over_constant"] == pytest.approx((2.0 + 1.25) / 2)
    assert found["rows_an_image"] == 24
    assert found["quality"]["kind"]["right"] == pytest.approx(6 / 8)
    assert figures["intervals"][name_of(CONSTANT)]["quality"]["count"]["right"] == 1.0


def test_guidance_on_the_embedded_family(tmp_path: Path) -> None:
    if not any(default_repository().glob("*/family.yaml")):
        pytest.skip("there is no embedded family here")
    out = tmp_path / "guidance.json"
    told = CliRunner().invoke(bench, ["guidance", "--images", "4", "--rounds", "1", "--json", "--out", str(out)])
    assert told.exit_code == 0, told.output
    figures = json.loads(out.read_text())
    rows = {name: one["rows_an_image"] for name, one in figures["intervals"].items()}
    assert rows[figures["constant"]] == 2 * figures["steps"]
    assert all(figures["steps"] < rows[name_of(interval)] < 2 * figures["steps"] for interval in INTERVALS[1:])
    assert figures["checks"]["ok"]


def test_a_repository_without_an_oracle_is_told(tmp_path: Path) -> None:
    repository = str(fake_repository(tmp_path))
    told = CliRunner().invoke(bench, ["guidance", "--repository", repository, "--backend", "fake"])
    assert told.exit_code == 1
    assert "no oracle" in told.output
