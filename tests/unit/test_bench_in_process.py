"""The arms that run in one process, on the fake family: what they compute, what they count, what they give."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository

from captory_bench.measuring import bare_loop, request_level
from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.checks import agrees, check_paintings
from captory_bench.measuring.crews import Crew, open_crews
from captory_bench.measuring.graphs import Graphs, open_graphs
from captory_bench.measuring.outcome import Outcome, compare
from captory_bench.measuring.workload import Painting, paintings, photos
from captory_engine.errors import BadModel

NUM = 12
BATCH = 4


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def graphs(repository: Path) -> Graphs:
    return open_graphs(repository, backend="fake")


@pytest.fixture(scope="module")
def way(graphs: Graphs) -> Way:
    return Way(Crew(graphs), BATCH)


@pytest.fixture(scope="module")
def jobs() -> list[Painting]:
    return paintings(NUM, 7)


@pytest.fixture(scope="module")
def fixed(way: Way, jobs: list[Painting]) -> Outcome:
    return request_level.run_fixed(way, jobs)


def test_a_fixed_batch_computes_every_row_until_its_longest_ends(jobs: list[Painting], fixed: Outcome) -> None:
    longest = [max(job.steps for job in jobs[start : start + BATCH]) for start in range(0, NUM, BATCH)]
    assert fixed.denoiser.batches == sum(longest)
    assert fixed.denoiser.computed_rows == 2 * BATCH * sum(longest)
    assert fixed.denoiser.useful_rows == 2 * sum(job.steps for job in jobs)
    assert fixed.denoiser.batch_rows == {2 * BATCH: sum(longest)}


def test_a_shrinking_batch_computes_useful_rows_only(way: Way, jobs: list[Painting], fixed: Outcome) -> None:
    shrinking = request_level.run_fixed(way, jobs, shrinking=True)
    assert shrinking.denoiser.computed_rows == shrinking.denoiser.useful_rows == fixed.denoiser.useful_rows
    assert shrinking.denoiser.batches == fixed.denoiser.batches


def test_groups_hold_equal_step_counts(way: Way, jobs: list[Painting]) -> None:
    grouped = request_level.run_grouped(way, jobs)
    assert grouped.denoiser.computed_rows == grouped.denoiser.useful_rows == 2 * sum(job.steps for job in jobs)
    assert grouped.denoiser.batches == 8 + 16 + 24 + 40  # three jobs of each: one batch of each


def test_all_ways_paint_the_same_images(way: Way, jobs: list[Painting], fixed: Outcome) -> None:
    others = [
        request_level.run_fixed(way, jobs, shrinking=True),
        request_level.run_fixed(way._replace(batch_size=NUM), jobs),
        request_level.run_grouped(way, jobs),
        request_level.run_fixed(Way(Crew(way.crew.graphs, num_workers=3), 1), jobs),
    ]
    for other in others:
        agreement = compare(fixed, other)
        assert agreement.num_compared == NUM
        assert agreement.max_difference == 0
    assert len({pixels.tobytes() for pixels in fixed.images.values()}) == NUM


def test_the_bare_loop_gives_the_same_in_any_batch(graphs: Graphs) -> None:
    ready = bare_loop.prepare(graphs, photos(6, 7))
    one, other = (bare_loop.run(Way(Crew(graphs, workers), size), ready, steps=3) for workers, size in ((2, 2), (1, 6)))
    agreement = compare(one, other)
    assert (agreement.num_compared, agreement.num_other_prompts, agreement.max_difference) == (6, 0, 0)
    assert all(pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 for pixels in one.images.values())
    assert (one.denoiser.batches, other.denoiser.batches) == (9, 3)
    assert one.images_per_s > 0


def test_the_best_way_is_one_that_the_work_fills(graphs: Graphs) -> None:
    crews = [Crew(graphs), Crew(graphs, num_workers=2)]
    assert bare_loop.best_way(crews, bare_loop.prepare(graphs, photos(3, 7))).batch_size == 3
    found = bare_loop.best_way(crews, bare_loop.prepare(graphs, photos(9, 7)))
    assert found.crew in crews
    assert found.batch_size in (4, 8)


def test_a_crew_is_one_worker_with_all_threads_or_one_for_each(repository: Path) -> None:
    crews = open_crews(repository, "", "fake", 2)
    assert [str(crew) for crew in crews] == ["1 worker of 2 threads", "2 workers of 1 thread"]
    assert len(open_crews(repository, "", "fake", 1)) == 1


def test_one_guided_job_makes_its_whole_batch_pay(way: Way) -> None:
    jobs = paintings(NUM, 7, mixed_guidance=True)
    together = request_level.run_fixed(way._replace(batch_size=NUM), jobs)
    assert together.denoiser.computed_rows == 2 * NUM * max(job.steps for job in jobs)
    assert together.denoiser.useful_rows == sum(job.steps * (1 if job.guidance_scale == 1 else 2) for job in jobs)
    grouped = request_level.run_grouped(way, jobs)
    assert grouped.denoiser.computed_rows == grouped.denoiser.useful_rows == together.denoiser.useful_rows
    assert compare(together, grouped).max_difference == 0


def test_guidance_changes_the_image(way: Way, jobs: list[Painting], fixed: Outcome) -> None:
    plain = request_level.run_fixed(way, [replace(job, guidance_scale=0.5) for job in jobs])
    assert plain.denoiser.computed_rows == fixed.denoiser.computed_rows // 2
    assert compare(plain, fixed).max_difference > 0


def test_unguided_families_pay_for_one_row_a_step(graphs: Graphs, jobs: list[Painting]) -> None:
    defaults = graphs.painter.defaults.model_copy(update={"guidance_scale": 1.0})
    fields = {name: getattr(graphs, name) for name in Graphs.__slots__}
    plain = Graphs(**fields | {"painter": graphs.painter.model_copy(update={"defaults": defaults})})
    outcome = request_level.run_grouped(Way(Crew(plain), BATCH), jobs)
    assert outcome.denoiser.computed_rows == sum(job.steps for job in jobs)


def test_a_wrong_image_among_those_that_were_timed_is_found(way: Way, jobs: list[Painting], fixed: Outcome) -> None:
    right = check_paintings(way, jobs, fixed)
    assert right.num_compared > 1
    assert agrees(right)
    wrong = fixed.images | {jobs[0].id: 255 - fixed.images[jobs[0].id]}
    assert not agrees(check_paintings(way, jobs, replace(fixed, images=wrong)))
    assert not agrees(check_paintings(way, jobs, Outcome()))


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_the_open_loop_waits_for_arrivals_and_measures_from_them(way: Way, jobs: list[Painting]) -> None:
    time = Time()
    arrivals = [0.5 * index for index in range(NUM)]
    outcome = request_level.run_grouped_open_loop(way, jobs, arrivals, time.clock, time.sleep)
    assert outcome.latencies.keys() == {job.id for job in jobs}
    assert all(latency_s == pytest.approx(0.0) for latency_s in outcome.latencies.values())  # computing takes no time
    assert outcome.times.wall_s == pytest.approx(arrivals[-1])
    assert outcome.denoiser.batches == sum(job.steps for job in jobs)  # nobody waited for a mate


def test_the_open_loop_takes_the_longest_waiting_and_its_equals_first(way: Way, jobs: list[Painting]) -> None:
    order = _finishing_order(way, jobs)
    assert [job.steps for job in order] == sorted((job.steps for job in jobs), key=[job.steps for job in jobs].index)


def _finishing_order(way: Way, jobs: list[Painting]) -> list[Painting]:
    time = Time()
    outcome = request_level.run_grouped_open_loop(way, jobs, [0.0] * NUM, time.clock, time.sleep)
    return [next(job for job in jobs if job.id == key) for key in outcome.latencies]


def test_images_of_other_prompts_are_not_compared() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    one = Outcome({"a": black, "b": black, "c": black}, {"a": "x", "b": "x", "c": "x"})
    other = Outcome({"a": black, "b": white, "c": white}, {"a": "x", "b": "y", "c": "x"})
    assert compare(one, other) == (2, 1, 255.0, 255)


def test_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="no model repository"):
        open_graphs(tmp_path / "nowhere")
