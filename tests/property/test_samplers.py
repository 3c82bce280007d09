"""Samplers against a network that is known exactly, and the arithmetic that every plan must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captory_engine.diffusion.noise import gaussian_noise, seeded_uniform
from captory_engine.diffusion.samplers import SAMPLERS, make_plan
from captory_engine.diffusion.schedules import NoiseSchedule
from captory_engine.diffusion.step import advance, guide
from captory_engine.errors import InvalidInput

samplers = st.sampled_from(sorted(SAMPLERS))
steps = st.integers(1, 60)


def run(sampler: str, num_steps: int, prediction: str, target: float, spread: float) -> tuple[float, float]:
    """Paint with the exact network of data ~ N(target, spread²); returns (painted, expected) for one noise value."""
    schedule = NoiseSchedule(prediction_type=prediction)
    plan = make_plan(schedule, sampler, num_steps, guided=False)
    sigmas = schedule.sigma_at(plan.timesteps.astype(np.float64))
    x = start = np.full((1, 1), 0.7) * plan.start_scale
    previous = np.zeros_like(x)
    for step, sigma in enumerate(sigmas):
        denoised = (spread**2 * x + sigma**2 * target) / (spread**2 + sigma**2)
        noise = (x - denoised) / sigma
        output = noise if prediction == "epsilon" else (noise - sigma * denoised) / np.sqrt(1 + sigma**2)
        x, previous = advance(x, output, previous, plan.coefficients[step : step + 1].astype(np.float64))
    final = 0.0 if SAMPLERS[sampler].final_sigma_zero else schedule.sigmas[0]
    scale = np.sqrt((spread**2 + final**2) / (spread**2 + sigmas[0] ** 2))
    return float(x[0, 0]), float(target + scale * (start[0, 0] - target))


@given(samplers, steps, st.sampled_from(["epsilon", "v_prediction"]), st.floats(-2, 2))
@settings(max_examples=60)
def test_a_point_is_reached_whatever_the_steps(sampler: str, num_steps: int, prediction: str, target: float) -> None:
    painted, expected = run(sampler, num_steps, prediction, target, spread=0.0)
    assert painted == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_gaussian_is_approached_with_more_steps(sampler: str) -> None:
    errors = [abs(np.subtract(*run(sampler, count, "epsilon", 0.5, spread=0.5))) for count in (5, 20, 80, 320)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("count", [10, 20, 40])
def test_the_second_order_sampler_is_closer(count: int) -> None:
    errors = {name: abs(np.subtract(*run(name, count, "epsilon", 0.5, spread=0.5))) for name in ("euler", "dpmpp-2m")}
    assert errors["dpmpp-2m"] < errors["euler"]


@given(samplers, steps)
def test_coefficients_of_a_rule_sum_to_one(sampler: str, num_steps: int) -> None:
    plan = make_plan(NoiseSchedule(), sampler, num_steps, guided=True)
    assert plan.num_steps == num_steps == len(plan.coefficients)
    np.testing.assert_allclose(plan.coefficients[:, 3:].sum(axis=1), 1.0, atol=1e-5)
    assert np.all(np.diff(plan.timesteps) < 0)
    assert plan.guided.all()


@given(samplers, steps, st.floats(0, 0.9), st.floats(0.05, 1))
def test_guidance_applies_inside_its_interval_only(sampler: str, num_steps: int, start: float, width: float) -> None:
    stop = min(1.0, start + width)
    plan = make_plan(NoiseSchedule(), sampler, num_steps, guided=True, interval=(start, stop))
    share = 1.0 - plan.timesteps.astype(np.float64) / 999
    assert not plan.guided[share < start - 1e-6].any()
    assert plan.guided[(share > start + 1e-6) & (share < stop - 1e-6)].all()


@pytest.mark.parametrize(("sampler", "num_steps"), [("ancestral", 10), ("ddim", 0), ("euler", 1001)])
def test_what_cannot_be_planned_is_refused(sampler: str, num_steps: int) -> None:
    with pytest.raises(InvalidInput):
        make_plan(NoiseSchedule(), sampler, num_steps, guided=False)


def test_rows_of_different_plans_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(0)
    plans = [make_plan(NoiseSchedule(), name, count, guided=False) for name in SAMPLERS for count in (4, 9)]
    rows = np.stack([plan.coefficients[2] for plan in plans])
    x, output, previous = rng.normal(size=(3, len(plans), 4, 2, 2)).astype(np.float32)
    together = advance(x, output, previous, rows)
    for row in range(len(plans)):
        one = slice(row, row + 1)
        alone = advance(x[one], output[one], previous[one], rows[one])
        np.testing.assert_array_equal(together.x[one], alone.x)
        np.testing.assert_array_equal(together.denoised[one], alone.denoised)


def test_guidance_of_one_is_the_conditional_output() -> None:
    conditional, unconditional = np.random.default_rng(0).normal(size=(2, 3, 4, 2, 2))
    np.testing.assert_allclose(guide(conditional, unconditional, np.ones(3)), conditional)


@given(st.integers(0, 2**53 - 1))
@settings(max_examples=20)
def test_noise_is_standard_normal_and_depends_on_its_seed_only(seed: int) -> None:
    noise = gaussian_noise(seed, (8, 16, 16))
    np.testing.assert_array_equal(noise, gaussian_noise(seed, (8, 16, 16)))
    assert abs(noise.mean()) < 0.12
    assert abs(noise.std() - 1) < 0.1
    assert not np.array_equal(noise, gaussian_noise(seed + 1, (8, 16, 16)))


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as published (Salmon et al. 2011, section 3.3)."""
    mask, (a, b, c, d), (k0, k1) = 2**64 - 1, counter, key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = right >> 64 ^ b ^ k0, right & mask, left >> 64 ^ d ^ k1, left & mask
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
    return [a, b, c, d]


def test_the_stream_of_noise_is_the_published_one() -> None:
    assert philox4x64([0] * 4, [0] * 2)[0] == 0x16554D9ECA36314C  # the authors' known answer
    raw = philox4x64([1, 0, 0, 0], [5, 7]) + philox4x64([2, 0, 0, 0], [5, 7])
    np.testing.assert_array_equal(seeded_uniform(5, 8, stream=7), [((value >> 11) + 0.5) * 2.0**-53 for value in raw])
