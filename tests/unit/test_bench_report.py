"""From outcomes to figures: medians, ratios within a round, the tail, and the check that the work was the same."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from families import fake_repository
from rich.console import Console

from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.crews import Crew
from captory_bench.measuring.graphs import Graphs, open_graphs
from captory_bench.measuring.outcome import Outcome, Times
from captory_bench.measuring.workload import paintings
from captory_bench.serve.arms import ARMS, BARE_LOOP, GROUPED_GUIDANCE, REQUEST_FIXED, SERVED_GUIDANCE, SERVED_UNIFORM
from captory_bench.serve.measure import Measured
from captory_bench.serve.report import check, summarise
from captory_bench.serve.tables import comparison_tables
from captory_engine.device import StageCounts

NUM = 8
KEYS = (
    "grpc_over_bare_loop",
    "step_over_request_level",
    "step_over_request_level_mixed_guidance",
    "short_p95_over_grouped",
    "mean_rows",
    "row_efficiency",
    "images_per_s",
)
# seconds of each arm, by round
SECONDS = {
    "bare_loop": (1.0, 1.0, 1.0),
    "served_uniform": (1.0, 1.25, 2.0),
    "served_mixed": (2.0, 2.0, 4.0),
    "request_fixed": (4.0, 3.0, 8.0),
    "request_shrinking": (2.0, 2.0, 2.0),
    "request_grouped": (2.0, 2.0, 2.0),
    "served_mixed_guidance": (2.0, 2.0, 2.0),
    "request_fixed_mixed_guidance": (3.0, 5.0, 4.0),
    "request_grouped_mixed_guidance": (3.0, 3.0, 3.0),
    "request_single_mixed_guidance": (3.0, 3.0, 3.0),
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return open_graphs(fake_repository(tmp_path_factory.mktemp("repository")), backend="fake")


def outcome(seconds: float, **changes: object) -> Outcome:
    images = {str(index): np.full((4, 4, 3), index, np.uint8) for index in range(NUM)}
    counts = StageCounts(10, 150, 200, 1.0, Counter({16: 5, 24: 5}))
    made = Outcome(images, dict.fromkeys(images, "a prompt"), {}, Times(seconds, seconds / 2), counts)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def measured(graphs: Graphs) -> Measured:
    rounds = [{name: outcome(SECONDS[name][number]) for name in ARMS} for number in range(3)]
    jobs = [paintings(NUM, number) for number in range(2)]
    waits = {SERVED_GUIDANCE: 1.0, GROUPED_GUIDANCE: 2.0}
    open_loop = [
        {
            name: outcome(1.0, latencies={job.id: wait_s * (0.5 if job.steps == 8 else 1.0) for job in own})
            for name, wait_s in waits.items()
        }
        for own in jobs
    ]
    return Measured(Way(Crew(graphs), 4), Way(Crew(graphs, 2), 1), 20, rounds, 3.5, open_loop, jobs)


def test_the_keys_that_others_rely_on_come_first(measured: Measured) -> None:
    figures = summarise(measured)
    assert set(KEYS) <= set(figures)
    assert json.loads(json.dumps(figures)) == figures


def test_ratios_are_medians_within_rounds_with_their_spread(measured: Measured) -> None:
    figures = summarise(measured)
    assert figures["grpc_over_bare_loop"] == pytest.approx(0.8)
    assert figures["spread"]["grpc_over_bare_loop"] == [0.5, 1.0]
    assert figures["step_over_request_level"] == pytest.approx(2.0)
    assert figures["spread"]["step_over_request_level"] == [1.5, 2.0]
    assert figures["images_per_s"] == pytest.approx(NUM / 1.25)


def test_each_target_stands_beside_its_figure(measured: Measured) -> None:
    targets = {target["name"]: target for target in summarise(measured)["targets"]}
    assert not targets["grpc_over_bare_loop"]["met"]
    step_level = targets["step_over_request_level_mixed_guidance"]
    assert (step_level["value"], step_level["low"], step_level["high"], step_level["met"]) == (2.0, 1.5, 2.5, True)
    assert targets["short_p95_over_grouped"]["value"] == 0.5
    assert targets["short_p95_over_grouped"]["met"]


def test_ratios_by_cpu_time_are_left_out_where_it_is_not_known(measured: Measured) -> None:
    assert summarise(measured)["by_cpu_time"]["grpc_over_bare_loop"] == pytest.approx(0.8)
    whole = measured.rounds[0][BARE_LOOP]
    measured.rounds[0][BARE_LOOP] = replace(whole, times=Times(1.0))
    assert summarise(measured)["by_cpu_time"]["grpc_over_bare_loop"] is None


def test_rows_come_from_all_rounds_of_the_mixed_arm(measured: Measured) -> None:
    figures = summarise(measured)
    assert figures["mean_rows"] == pytest.approx(20.0)
    assert figures["row_efficiency"] == pytest.approx(0.75)
    assert figures["batch_rows"] == {"16": 15, "24": 15}


def test_the_tail_is_told_of_all_and_of_the_short(measured: Measured) -> None:
    latency = summarise(measured)["latency"]
    assert latency["arrivals_per_s"] == 3.5
    assert latency[SERVED_GUIDANCE] == {"p50_s": 1.0, "p95_s": 1.0, "short_p50_s": 0.5, "short_p95_s": 0.5}
    assert latency[GROUPED_GUIDANCE]["short_p95_s"] == 1.0


def test_equal_images_agree(measured: Measured) -> None:
    checks = check(measured)
    assert checks["ok"]
    assert checks["agreement"]["served_uniform~bare_loop"]["num_compared"] == 3 * NUM


def test_another_image_or_a_missing_one_does_not_agree(measured: Measured) -> None:
    whole = measured.rounds[1][REQUEST_FIXED]
    painted = whole.images | {"3": np.full((4, 4, 3), 200, np.uint8)}
    measured.rounds[1][REQUEST_FIXED] = replace(whole, images=painted)
    assert not check(measured)["ok"]
    del painted["3"]
    assert not check(measured)["ok"]


def test_other_prompts_are_borne_where_they_are_few(measured: Measured) -> None:
    whole = measured.rounds[0][SERVED_UNIFORM]
    measured.rounds[0][SERVED_UNIFORM] = replace(whole, prompts=whole.prompts | {"0": "another"})
    assert check(measured)["ok"]
    measured.rounds[0][SERVED_UNIFORM] = replace(whole, prompts=dict.fromkeys(whole.prompts, "another"))
    assert not check(measured)["ok"]


def test_the_tables_name_every_arm_and_what_it_includes(measured: Measured) -> None:
    machine = {"cpu": "a processor", "cpus": 2, "threads": 2, "memory_gib": 8, "system": "", "python": "3"}
    figures = summarise(measured) | {"machine": machine | {"versions": {"numpy": "2"}, "load_average": [1.0, 9.0, 1.0]}}
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(comparison_tables(figures))
    words = " ".join(console.export_text().split())
    assert all(name.replace("_", " ") in words for name in ARMS)
    assert "vision, caption, text, denoise, autoencoder" in words
    assert "4 images, 1 worker of 1 thread; every image computed until the longest ends" in words
    assert "times are noisy" in words
    assert BARE_LOOP not in words
