"""Load: the search for the highest rate, what counts as goodput, LoadGen's summary, and a tiny run."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from families import fake_repository

from captory_bench.load import loadgen_child
from captory_bench.load import measure as load
from captory_bench.load.client import EXPIRED, REFUSED, Answer, Load
from captory_bench.load.loadgen import SUMMARY as SUMMARY_FILE
from captory_bench.load.loadgen import Verdict, read_run, read_summary
from captory_bench.load.loadgen_child import FAILURES, OFFLINE, SERVER, LoadRun
from captory_bench.load.measure import Measured, Settings, highest, holds, measure
from captory_bench.load.report import load_tables, summarise
from captory_bench.measuring.arrivals import poisson_arrivals_within
from captory_bench.measuring.outcome import Agreement
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.subject import Subject
from captory_bench.measuring.workload import Painting
from captory_proto.v1 import captory_pb2 as pb

JOB = Painting("a", "a mug", 8, 1)
IMAGE = pb.ImageResult(data=b"an image")
MACHINE = {"cpu": "", "cpus": 2, "threads": 2, "memory_gib": 8, "system": "", "python": "3", "versions": {}}
SUMMARY = """
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Completed samples per second    : 7.44
Samples per second: 8.5
Result is : INVALID
  Min duration satisfied : Yes
Recommendations:
99.00 percentile latency (ns)   : 104753417
"""


async def search(limit: float, num_probes: int = 5) -> tuple[float | None, list[float]]:
    asked: list[float] = []

    async def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    return await highest(holds, 3.0, 10.0, num_probes), asked


async def test_the_search_comes_close_to_the_limit_in_few_probes() -> None:
    found, asked = await search(7.3)
    assert found is not None
    assert 7.3 - 7.0 / 2**4 < found <= 7.3
    assert len(asked) == 5
    assert found == max(rate for rate in asked if rate <= 7.3)


async def test_the_search_goes_below_where_it_began_and_may_find_nothing() -> None:
    found, asked = await search(2.0)
    assert found is not None
    assert 1.0 < found <= 2.0
    assert min(asked) < 3.0
    assert (await search(0.0))[0] is None


def test_arrivals_within_a_time_are_all_within_it() -> None:
    arrivals = poisson_arrivals_within(10.0, 500, seed=3)
    assert arrivals == sorted(arrivals) == poisson_arrivals_within(10.0, 500, seed=3)
    assert len(arrivals) == 500
    assert 0.0 <= arrivals[0] < arrivals[-1] <= 10.0


def offered(num_good: int) -> Load:
    good = [Answer(1.0, 0.4, "", JOB, IMAGE)] * num_good
    late = [Answer(1.0, 0.6, "", JOB, IMAGE)]
    after = [Answer(9.8, 0.4, "", JOB, IMAGE)]  # in time, but past the seconds that count
    refused = [Answer(2.0, ms / 1000, REFUSED, JOB) for ms in (10, 20, 30)]
    expired = [Answer(3.0, 0.5, EXPIRED, JOB)]
    return Load(10.0, [*good, *late, *after, *refused, *expired])


def test_goodput_is_what_came_in_time() -> None:
    answers = offered(20)
    assert answers.goodput_per_s(bound_s=0.5) == 2.0
    assert answers.refusals_s == [0.01, 0.02, 0.03]
    assert answers.num_failed == 0
    assert answers.num_late(bound_s=0.5) == 2
    assert 0.4 <= answers.p99_s <= 0.6
    assert Load(1.0, [Answer(0.0, 0.1, "UNAVAILABLE", JOB)]).num_failed == 1


@pytest.fixture
def measured() -> Measured:
    offline, server = (Verdict(rate, 25.0, 0.4, 0, "VALID") for rate in (0.0, 2.0))
    rounds = [{1: offered(20), 2: offered(19), 10: offered(15)}] * 3
    agreement = {"trial": Agreement(8, 0, 0.0, 0)}
    return Measured(8, True, [offline], [server], server, 20, rounds, agreement)


def test_goodput_is_held_against_the_highest_rate(measured: Measured) -> None:
    figures = summarise(Settings(Subject(Path()), bound_s=0.5), measured)
    targets = {target["name"]: target for target in figures["targets"]}
    assert [targets[f"goodput_over_peak_at_{m}x"]["value"] for m in (1, 2, 10)] == pytest.approx([1.0, 0.95, 0.75])
    assert [targets[f"goodput_over_peak_at_{m}x"]["met"] for m in (1, 2, 10)] == [True, True, False]
    assert targets["refusal_p99_ms"]["met"]
    assert figures["goodput"]["1"][0]["late"] == 2
    assert load_tables(figures | {"machine": MACHINE | {"load_average": [0.0, 0.0, 0.0]}})


def test_without_a_rate_that_holds_goodput_is_missed(measured: Measured) -> None:
    measured.server, measured.goodput = None, []
    figures = summarise(Settings(Subject(Path())), measured)
    assert figures["checks"]["ok"]
    assert [(target["value"], target["met"]) for target in figures["targets"]] == [(0.0, False)] * 3
    assert load_tables(figures | {"machine": MACHINE | {"load_average": [0.0, 0.0, 0.0]}})


def test_the_summary_is_read() -> None:
    summary = read_summary(SUMMARY)
    assert summary["Result is"] == "INVALID"
    assert summary["Completed samples per second"] == "7.44"
    assert summary["99.00 percentile latency (ns)"] == "104753417"


def finished(folder: Path, scenario: str, failures: list[str]) -> LoadRun:
    (folder / SUMMARY_FILE).write_text(SUMMARY)
    (folder / FAILURES).write_text(json.dumps(failures))
    return LoadRun(scenario, "", str(folder), 8, 1.0, 1.0, 1.0)


def test_failed_queries_are_no_samples(tmp_path: Path) -> None:
    assert read_run(finished(tmp_path, OFFLINE, []), tmp_path).samples_per_s == 8.5
    with pytest.raises(ArmFailed, match="1 queries of LoadGen's Offline run failed: no room"):
        read_run(finished(tmp_path, OFFLINE, ["no room"]), tmp_path)
    verdict = read_run(finished(tmp_path, SERVER, ["no room"]), tmp_path)
    assert verdict.num_failed == 1
    assert not holds(verdict, bound_s=1.0)
    assert holds(replace(verdict, num_failed=0), bound_s=1.0)
    assert not holds(replace(verdict, num_failed=0), bound_s=0.1)


def test_an_error_that_nobody_foresaw_ends_the_child(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(loadgen_child.os, "_exit", codes.append)
    good, bad = Future[None](), Future[None]()
    good.set_result(None)
    bad.set_exception(KeyError("a field"))
    loadgen_child.end_at_error(good)
    assert codes == []
    loadgen_child.end_at_error(bad)
    assert codes == [1]
    assert "KeyError: 'a field'" in capsys.readouterr().err


@pytest.mark.parametrize("with_loadgen", [False, True])
async def test_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_loadgen: bool) -> None:
    if with_loadgen and find_spec(loadgen_child.MODULE) is None:
        pytest.skip("mlcommons-loadgen is not installed")
    monkeypatch.setattr(load, "installed", lambda: with_loadgen)
    settings = Settings(
        Subject(fake_repository(tmp_path), backend="fake"),
        bound_s=60.0,
        seconds=0.3,
        final_seconds=0.3,
        num_probes=1,
        num_rounds=1,
        steps=8,
    )
    figures = summarise(settings, await measure(settings, lambda words: None))
    assert figures["checks"]["ok"]
    assert figures["offline"]["samples_per_s"] > 0
    assert figures["server"]["rate_per_s"] > 0
    assert figures["goodput"]["1"][0]["sent"] > 0
    assert figures["goodput"]["1"][0]["failed"] == 0
    assert ("not installed" in figures["loadgen"]) == (not with_loadgen)
