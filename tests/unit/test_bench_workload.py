"""What the benchmarks send, and when."""

from collections import Counter

import numpy as np
import pytest

from captory_bench.measuring.arrivals import percentiles, poisson_arrivals
from captory_bench.measuring.workload import FIRST_SCENE, MIXED_STEPS, paintings, photos

LAST_TRAINING_SCENE = 10_000_000


def test_step_counts_are_mixed_in_equal_shares_and_shuffled() -> None:
    steps = [job.steps for job in paintings(64, 3)]
    assert Counter(steps) == dict.fromkeys(MIXED_STEPS, 16)
    assert steps != sorted(steps)
    assert steps != [*MIXED_STEPS] * 16


def test_guidance_is_mixed_in_every_step_count_alike() -> None:
    jobs = paintings(64, 3, mixed_guidance=True)
    assert Counter((job.steps, job.guidance_scale) for job in jobs) == {
        (steps, scale): 8 for steps in MIXED_STEPS for scale in (1.0, None)
    }
    assert [job.steps for job in jobs] == [job.steps for job in paintings(64, 3)]


def test_the_same_round_is_the_same_work_and_another_shares_nothing() -> None:
    assert paintings(8, 2) == paintings(8, 2)
    assert photos(4, 2) == photos(4, 2)
    rounds = [{job.seed for job in paintings(50, number)} for number in range(4)]
    assert len(set.union(*rounds)) == 200
    assert {photo.id for photo in photos(4, 0)}.isdisjoint(photo.id for photo in photos(4, 1))


def test_no_scene_is_one_of_training() -> None:
    assert min(photo.seed for photo in photos(2, 0)) >= FIRST_SCENE > LAST_TRAINING_SCENE


def test_photos_are_encoded_images_with_a_class() -> None:
    [photo] = photos(1, 5)
    assert photo.data.startswith(b"\x89PNG")
    assert photo.class_name


def test_poisson_arrivals_have_the_rate_and_come_in_order() -> None:
    arrivals = poisson_arrivals(5.0, 4000, seed=1)
    gaps = np.diff([0.0, *arrivals])
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.05)
    assert arrivals == poisson_arrivals(5.0, 4000, seed=1)


def test_percentiles() -> None:
    assert percentiles(range(101)) == (50.0, 95.0)
