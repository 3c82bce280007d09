"""The served arms: a real child server and the real client; and the whole command on the embedded family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.measuring import request_level
from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.crews import Crew
from captory_bench.measuring.graphs import open_graphs
from captory_bench.measuring.outcome import compare
from captory_bench.measuring.served import ArmFailed, server_options, serving
from captory_bench.measuring.workload import Painting, paintings, photos
from captory_bench.serve.arms import ARMS
from captory_engine.repository import default_repository

NUM = 12


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_repository(tmp_path_factory.mktemp("repository"))


async def test_the_server_paints_what_request_batching_paints_and_counts_it(repository: Path) -> None:
    jobs = paintings(NUM, 7)
    async with serving(server_options(repository, "", "fake", 1)) as served:
        first = await served.paintings(jobs)
        again = await served.paintings(jobs)
    agreement = compare(first, request_level.run_grouped(Way(Crew(open_graphs(repository, backend="fake")), 4), jobs))
    assert (agreement.num_compared, agreement.max_difference) == (NUM, 0)
    for outcome in (first, again):
        counts = outcome.denoiser
        assert counts.useful_rows == 2 * sum(job.steps for job in jobs)
        assert counts.computed_rows >= counts.useful_rows
        assert sum(rows * num for rows, num in counts.batch_rows.items()) == counts.computed_rows
        assert sum(counts.batch_rows.values()) == counts.batches
        assert max(counts.batch_rows) > 2  # batching is observed, not only accepted
        assert counts.seconds > 0


async def test_photographs_go_the_whole_way(repository: Path) -> None:
    items = photos(5, 7)
    async with serving(server_options(repository, "fake", "fake", 1)) as served:
        outcome = await served.photos(items, steps=2)
    assert outcome.images.keys() == {photo.id for photo in items}
    assert all(pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 for pixels in outcome.images.values())
    assert all(outcome.prompts[photo.id].startswith(f"a photo of {photo.class_name}") for photo in items)
    assert outcome.denoiser.useful_rows == 2 * 2 * len(items)
    assert outcome.images_per_s > 0
    assert outcome.times.cpu_s >= 0


async def test_the_open_loop_measures_from_the_intended_send(repository: Path) -> None:
    jobs = paintings(4, 7)
    async with serving(server_options(repository, "", "fake", 1)) as served:
        outcome = await served.open_loop(jobs, [0.0, 0.01, 0.02, 0.03])
    assert outcome.latencies.keys() == {job.id for job in jobs}
    assert all(0 < latency_s <= outcome.times.wall_s for latency_s in outcome.latencies.values())


async def test_an_item_that_is_refused_fails_the_arm(repository: Path) -> None:
    jobs = [Painting("too-long", "a mug", 10_000, 1)]
    async with serving(server_options(repository, "", "fake", 1)) as served:
        with pytest.raises(ArmFailed, match="too-long"):
            await served.paintings(jobs)


def test_the_command_on_the_embedded_family(tmp_path: Path) -> None:
    if not any(default_repository().glob("*/family.yaml")):
        pytest.skip("there is no embedded family here")
    out = tmp_path / "bench.json"
    options = ["serve", "--images", "4", "--rounds", "1", "--steps", "2", "--json", "--out", str(out)]
    told = CliRunner().invoke(bench, options)
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    assert figures == json.loads(out.read_text())
    assert set(figures["arms"]) == set(ARMS)
    assert figures["checks"]["ok"]
    assert figures["mean_rows"] > 1
    assert 0 < figures["row_efficiency"] <= 1
    for name in ("grpc_over_bare_loop", "step_over_request_level", "images_per_s"):
        assert figures[name] > 0
    assert figures["arms"]["request_fixed"]["row_efficiency"] == pytest.approx((8 + 16 + 24 + 40) / 160)
    assert "served_mixed" in told.stderr
