"""Step engines on the fake backend, batch by batch: slots, padding, prefill, sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.schedules import NoiseSchedule
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.denoiser import TEXT, Denoiser, DenoiseTask
from captory_engine.engines.slots import Slots
from captory_engine.engines.token_decoder import DecoderShape, TokenDecoder, TokenTask, draw
from captory_engine.errors import BadOutput, Exhausted
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.fake import Call, FakeSession, nan_rows

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
VOCABULARY, POSITIONS = 24, 40


def unet() -> FakeSession:
    inputs = [
        TensorSpec("sample", F32, (2, 4, 4)),
        TensorSpec("timestep", F32, ()),
        TensorSpec("encoder_hidden_states", F32, (3, 5)),
    ]
    return FakeSession("unet", inputs, [TensorSpec("out_sample", F32, (2, 4, 4))], max_batch=8)


def decoder() -> FakeSession:
    cache = (1, 2, -1, 4)
    inputs = [
        TensorSpec("input_ids", I64, (-1,)),
        TensorSpec("position_ids", I64, (-1,)),
        TensorSpec("past_mask", F32, (-1,)),
        TensorSpec("past_keys", F32, cache),
        TensorSpec("past_values", F32, cache),
    ]
    outputs = [
        TensorSpec("logits", F32, (-1, VOCABULARY)),
        *(TensorSpec(f"new_{k}", F32, cache) for k in ("keys", "values")),
    ]
    return FakeSession("decoder", inputs, outputs, max_batch=8)


def denoise_task(seed: int, steps: int, scale: float, sampler: str = "euler", *, exact: bool = False) -> DenoiseTask:
    text = np.full((3, 5), seed, np.float32)
    plan = make_plan(NoiseSchedule(), sampler, steps, scale > 1)
    return DenoiseTask(plan, seed, (2, 4, 4), {TEXT: text}, {TEXT: text * 0}, scale, exact)


def run_to_the_end(engine: Any, tasks: list[Any]) -> int:
    computed = 0
    while waiting := [task for task in tasks if not task.ended]:
        key = engine.need(waiting[0]).key
        computed += engine.run([task for task in waiting if engine.need(task).key == key])
    return computed


def test_rows_of_all_kinds_share_a_batch_and_end_as_if_alone() -> None:
    kinds = [(1, 4, 1.0, "euler"), (2, 7, 3.0, "ddim"), (3, 2, 1.5, "dpmpp-2m"), (4, 5, 1.0, "dpmpp-2m")]
    engine = Denoiser(unet(), Profile(8), BatchRule())
    together = [denoise_task(*kind) for kind in kinds]
    computed = run_to_the_end(engine, together)
    assert computed == sum(kind[1] * (2 if kind[2] > 1 else 1) for kind in kinds)
    for kind, task in zip(kinds, together, strict=True):
        alone = denoise_task(*kind)
        run_to_the_end(Denoiser(unet(), Profile(8), BatchRule()), [alone])
        np.testing.assert_array_equal(task.result, alone.result)


def test_exact_batches_are_always_of_one_size() -> None:
    session = unet()
    engine = Denoiser(session, Profile(8), BatchRule(exact_rows=4))
    tasks = [denoise_task(seed, 2, 1.0 + seed % 2, exact=True) for seed in range(5)]
    computed = run_to_the_end(engine, tasks)
    assert set(session.batches) == {4}
    assert computed == 4 * len(session.batches) == 16


def test_slots_are_given_back() -> None:
    engine = Denoiser(unet(), Profile(8), BatchRule())
    tasks = [denoise_task(seed, 3, 1.0) for seed in range(20)]
    engine.run(tasks)
    [slots] = engine._slots.values()
    assert slots.num_taken == 20
    for task in tasks:
        engine.retire(task)
        engine.retire(task)
    assert slots.num_taken == 0


def test_a_slot_starts_empty() -> None:
    slots = Slots({"a": ((2,), np.float32)}, capacity=2)
    first = slots.take()
    slots["a"][first] = 7
    slots.give(first)
    assert slots.take() == first
    np.testing.assert_array_equal(slots["a"][first], [0, 0])
    slots["a"][first] = 5
    second = slots.take()
    assert second != first
    np.testing.assert_array_equal(slots["a"][[first, second]], [[5, 5], [0, 0]])
    with pytest.raises(Exhausted, match="all 2 slots"):
        slots.take()


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("fixed", [0, 4])
def test_padding_changes_no_row(num_rows: int, fixed: int) -> None:
    rng = np.random.default_rng(num_rows)
    inputs = {
        "sample": rng.normal(size=(num_rows, 2, 4, 4)).astype(np.float32),
        "timestep": rng.normal(size=num_rows).astype(np.float32),
        "encoder_hidden_states": rng.normal(size=(num_rows, 3, 5)).astype(np.float32),
    }
    outputs, computed = padded(unet(), inputs, fixed)
    assert computed == (-(-num_rows // 4) * 4 if fixed else num_rows)
    for row in range(num_rows):
        alone = unet().run({name: array[row : row + 1] for name, array in inputs.items()})
        np.testing.assert_array_equal(outputs["out_sample"][row], alone["out_sample"][0])


def token_engine() -> TokenDecoder:
    return TokenDecoder("write", decoder(), DecoderShape(1, 2, 4, POSITIONS, eos_id=2), Profile(8), BatchRule())


def test_prefixes_of_different_lengths_decode_as_if_alone() -> None:
    prefixes = [(1,), (1, 5, 6), (1, 9, 9, 9, 9, 9), tuple(range(3, 20))]
    together = [TokenTask(prefix, 12, temperature=1.0, seed=index) for index, prefix in enumerate(prefixes)]
    run_to_the_end(token_engine(), together)
    for index, prefix in enumerate(prefixes):
        alone = TokenTask(prefix, 12, temperature=1.0, seed=index)
        run_to_the_end(token_engine(), [alone])
        assert alone.result == together[index].result


def test_greedy_takes_the_best_and_a_row_that_is_not_finite_fails_alone() -> None:
    wanted = [5, 7, 9]

    def scripted(call: Call) -> None:
        for row, cached in enumerate(call.inputs["past_mask"].sum(axis=1).astype(int)):
            call.outputs["logits"][row, -1] = np.arange(VOCABULARY) == wanted[max(0, cached - 1)]

    fails = nan_rows("logits", lambda inputs, row: bool(inputs["input_ids"][row, 0] == 4))
    session = decoder()
    session.faults += [scripted, fails]
    engine = TokenDecoder("caption", session, DecoderShape(1, 2, 4, POSITIONS, eos_id=2), Profile(8), BatchRule())
    good, bad = TokenTask((3, 1), 3), TokenTask((4, 1), 3)
    run_to_the_end(engine, [good, bad])
    assert good.result == (5, 7, 9)
    assert isinstance(bad.error, BadOutput)
    assert bad.result is None


def test_decoding_ends_at_the_limit_or_where_the_cache_ends() -> None:
    short = TokenTask((1,), 3, temperature=1.0, seed=4)
    long = TokenTask((1,) * (POSITIONS - 4), 100, temperature=1.0, seed=5)
    run_to_the_end(token_engine(), [short])
    run_to_the_end(token_engine(), [long])
    assert len(short.result) <= 3
    assert len(long.result) <= 5


def test_a_token_is_drawn_from_the_best() -> None:
    logits = np.array([0.0, 3.0, 2.0, -1.0])
    rng = np.random.default_rng(0)
    drawn = [draw(logits, 1.0, 2, rng.random) for _ in range(400)]
    assert set(drawn) == {1, 2}
    share = np.exp(3.0) / (np.exp(3.0) + np.exp(2.0))
    assert abs(drawn.count(1) / 400 - share) < 0.08
