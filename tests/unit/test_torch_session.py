"""Sessions of the torch backend over tiny modules: fixed batches, memory, arrays, and the denoiser over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from captory_engine.device import Device
from captory_engine.diffusion.samplers import make_plan
from captory_engine.diffusion.schedules import NoiseSchedule
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.denoiser import TEXT, Denoiser, DenoiseTask
from captory_engine.errors import BadModel, BadOutput, OutOfMemory, Unavailable
from captory_engine.scheduler import Profile
from captory_engine.sessions.arrays import HostArrays, arrays_of
from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.options import SessionOptions, TorchOptions

torch = pytest.importorskip("torch", reason="the torch backend needs torch (make test installs it)")

from captory_engine.sessions.torch import TorchSession  # noqa: E402
from captory_engine.sessions.torch_arrays import TorchArrays  # noqa: E402
from captory_engine.sessions.torch_graphs import bucket_of  # noqa: E402

F32 = np.dtype(np.float32)
SHAPE = (2, 4, 4)
INPUTS = (TensorSpec("sample", F32, SHAPE), TensorSpec("timestep", F32, ()))
INPUTS = (*INPUTS, TensorSpec("encoder_hidden_states", F32, (3, 5)))
OUTPUTS = (TensorSpec("out_sample", F32, SHAPE),)


class TinyUNet(torch.nn.Module):
    """A function of each row alone; it records the rows that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.calls: list[int] = []

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> tuple[Any]:
        self.calls.append(len(sample))
        shift = encoder_hidden_states.mean(dim=(1, 2)) + timestep / 1000
        return (torch.tanh(self.conv(sample) + shift[:, None, None, None]),)


def opened(module: Any, *, buckets: tuple[int, ...] = (), max_batch: int = 8) -> TorchSession:
    settings = TorchOptions(device="cpu", graphs=bool(buckets), buckets=buckets)
    options = SessionOptions(num_threads=1, torch=settings)
    return TorchSession("unet", module, INPUTS, OUTPUTS, max_batch=max_batch, options=options)


def inputs_of(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    return {spec.name: rng.standard_normal((rows, *spec.shape)).astype(np.float32) for spec in INPUTS}


def task(seed: int, steps: int, scale: float, sampler: str = "euler") -> DenoiseTask:
    text = np.full((3, 5), seed / 10, np.float32)
    plan = make_plan(NoiseSchedule(), sampler, steps, scale > 1)
    return DenoiseTask(plan, seed, SHAPE, {TEXT: text}, {TEXT: text * 0}, scale)


def run_to_the_end(engine: Denoiser, tasks: list[DenoiseTask]) -> int:
    computed = 0
    while waiting := [task for task in tasks if not task.ended]:
        computed += engine.run(waiting)
    return computed


@pytest.mark.parametrize(("rows", "bucket"), [(1, 2), (2, 2), (3, 8), (8, 8)])
def test_fixed_batches_are_padded_and_change_no_row(rows: int, bucket: int) -> None:
    module = TinyUNet()
    fixed, plain = opened(module, buckets=(2, 8)), opened(TinyUNet())
    fixed.run(inputs_of(8))  # leaves other rows in the buffers
    module.calls.clear()
    outputs, computed = padded(fixed, inputs_of(rows))
    assert module.calls == [bucket]
    assert computed == bucket
    np.testing.assert_allclose(outputs["out_sample"], plain.run(inputs_of(rows))["out_sample"], atol=1e-6)


def test_outputs_outlive_the_next_batch() -> None:
    session = opened(TinyUNet(), buckets=(4,))
    first = session.run(inputs_of(2))["out_sample"]
    kept = first.copy()
    session.run(inputs_of(3))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (5, 8), (8, 8), (9, 9)])
def test_the_smallest_bucket_that_holds_the_rows(rows: int, bucket: int) -> None:
    assert bucket_of((1, 2, 8), rows) == bucket


def test_more_rows_than_a_batch_holds_are_joined_where_they_are() -> None:
    session = opened(TinyUNet(), max_batch=4)
    tensors = {name: torch.from_numpy(value) for name, value in inputs_of(10).items()}
    outputs, computed = padded(session, tensors, fixed_rows=4)
    assert computed == 12
    assert isinstance(outputs["out_sample"], torch.Tensor)
    expected = opened(TinyUNet(), max_batch=16).run(inputs_of(10))["out_sample"]
    np.testing.assert_allclose(outputs["out_sample"].numpy(), expected, atol=1e-6)


def failing(error: Callable[[], Exception]) -> Any:
    class Failing(torch.nn.Module):
        def forward(self, **_: Any) -> Any:
            raise error()

    return Failing()


def test_out_of_memory_is_told_apart_from_a_broken_backend() -> None:
    with pytest.raises(OutOfMemory, match="does not fit"):
        opened(failing(lambda: torch.OutOfMemoryError("words of the device"))).run(inputs_of(1))
    with pytest.raises(Unavailable, match=r"^unet could not be run\.$") as caught:
        opened(failing(lambda: RuntimeError("words of the device"))).run(inputs_of(1))
    assert not isinstance(caught.value, OutOfMemory)


TOO_MANY = 1 << 50  # bytes: more than any machine has


def test_a_cpu_without_memory_says_so_as_a_gpu_does() -> None:
    arrays = opened(TinyUNet()).arrays
    with pytest.raises(OutOfMemory, match="memory of cpu"), arrays.guard():
        arrays.zeros((TOO_MANY,), np.uint8)
    with pytest.raises(OutOfMemory), arrays.guard():
        arrays.zeros((1,), np.uint8).expand(TOO_MANY)[torch.zeros(1, dtype=torch.long)].expand(TOO_MANY).clone()
    with pytest.raises(RuntimeError, match="of another kind"), arrays.guard():
        raise RuntimeError("of another kind")
    with pytest.raises(OutOfMemory), HostArrays().guard():
        np.zeros(1 << 62, np.uint8)


@pytest.mark.parametrize("verb", ["from_host", "to_host"])
def test_out_of_memory_on_the_way_there_and_back_is_told(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(TinyUNet())
    monkeypatch.setattr(session.arrays, verb, lambda _: torch.empty(TOO_MANY, dtype=torch.uint8))
    with pytest.raises(OutOfMemory):
        session.run(inputs_of(1))
    fails = failing(lambda: RuntimeError("words of the device"))
    monkeypatch.setattr(session.arrays, verb, lambda value: fails(sample=value))
    with pytest.raises(Unavailable, match=r"^unet could not be run\.$"):
        session.run(inputs_of(1))


class Gathered:
    """A slot table that has memory to gather two rows at a time."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __getitem__(self, taken: Any) -> Any:
        if len(taken) > 2:
            raise torch.OutOfMemoryError("words of the device")
        return self.table[taken]

    def __setitem__(self, taken: Any, rows: Any) -> None:
        self.table[taken] = rows


class TightArrays(TorchArrays):
    """Tensors of a device on which a batch of more than two rows cannot be gathered."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        table = super().zeros(shape, dtype)
        return Gathered(table) if shape[1:] == SHAPE else table


async def test_slots_that_cannot_be_gathered_halve_the_batch() -> None:
    session = opened(TinyUNet())
    session.arrays = TightArrays(torch.device("cpu"))
    device = Device([Denoiser(session, Profile(max_rows=8), BatchRule())])
    loop = asyncio.create_task(device.serve())
    tasks = [task(seed, 4, 1.0) for seed in range(8)]
    results = await asyncio.gather(*(device.submit("denoise", one) for one in tasks))
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    await device.close()
    assert device.counts["denoise"].max_rows == 2
    alone = [task(seed, 4, 1.0) for seed in range(8)]
    run_to_the_end(Denoiser(opened(TinyUNet()), Profile(8), BatchRule()), alone)
    for result, one in zip(results, alone, strict=True):
        np.testing.assert_allclose(result, one.result, atol=2e-4)


def test_slots_that_find_no_memory_are_told() -> None:
    engine = Denoiser(opened(TinyUNet()), Profile(8), BatchRule())
    huge = task(1, 4, 1.0)
    huge.shape = (1 << 20, 1 << 15, 1 << 15)
    with pytest.raises(OutOfMemory):
        engine.run([huge])


def test_a_device_that_is_not_there_is_refused() -> None:
    options = SessionOptions(torch=TorchOptions(device="nowhere"))
    with pytest.raises(BadModel, match="no device 'nowhere'"):
        TorchSession("unet", TinyUNet(), INPUTS, OUTPUTS, max_batch=1, options=options)


def test_an_output_of_another_shape_is_bad_output() -> None:
    class Halving(TinyUNet):
        def forward(self, **inputs: Any) -> tuple[Any]:
            return (super().forward(**inputs)[0][:, :1],)

    with pytest.raises(BadOutput, match="out_sample"):
        opened(Halving()).run(inputs_of(2))


class FakeNumpySession:
    """The same network behind a session of NumPy arrays."""

    name, inputs, outputs, max_batch, digest, backend = "unet", INPUTS, OUTPUTS, 8, "", "numpy"

    def __init__(self) -> None:
        self._module = TinyUNet()

    def run(self, inputs: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {"out_sample": self._module(**{k: torch.from_numpy(v) for k, v in inputs.items()})[0].numpy()}

    def close(self) -> None: ...


KINDS = [(1, 4, 1.0, "euler"), (2, 7, 3.0, "ddim"), (3, 2, 1.5, "dpmpp-2m"), (4, 5, 1.0, "dpmpp-2m")]


@pytest.mark.parametrize("buckets", [(), (2, 4, 8)])
def test_the_denoiser_paints_the_same_on_tensors_as_on_numpy(buckets: tuple[int, ...]) -> None:
    on_tensors, on_numpy = ([task(*kind) for kind in KINDS] for _ in range(2))
    session = opened(TinyUNet(), buckets=buckets)
    run_to_the_end(Denoiser(session, Profile(8), BatchRule()), on_tensors)
    run_to_the_end(Denoiser(FakeNumpySession(), Profile(8), BatchRule()), on_numpy)
    for one, other in zip(on_tensors, on_numpy, strict=True):
        assert isinstance(one.result, np.ndarray)
        np.testing.assert_allclose(one.result, other.result, atol=2e-4)


class OffHost(HostArrays):
    """NumPy that counts what is looked at, as a device would wait for it."""

    on_host = False

    def __init__(self) -> None:
        self.looked_at: list[int] = []

    def to_host(self, array: Any) -> Any:
        self.looked_at.append(len(array))
        return array


def test_off_the_host_only_ended_rows_are_looked_at() -> None:
    session: Any = FakeNumpySession()
    session.arrays = OffHost()
    assert arrays_of(session) is session.arrays
    tasks = [task(*kind) for kind in KINDS]
    run_to_the_end(Denoiser(session, Profile(8), BatchRule()), tasks)
    assert session.arrays.looked_at == [1, 1, 1, 1]
    alone = [task(*kind) for kind in KINDS]
    run_to_the_end(Denoiser(FakeNumpySession(), Profile(8), BatchRule()), alone)
    for one, other in zip(tasks, alone, strict=True):
        np.testing.assert_array_equal(one.result, other.result)


@pytest.mark.parametrize("on_host", [True, False])
def test_a_row_that_is_not_finite_fails_alone(on_host: bool) -> None:
    session: Any = FakeNumpySession()
    if not on_host:
        session.arrays = OffHost()
    good, bad = task(1, 6, 2.0, "dpmpp-2m"), task(2, 6, 1.0, "dpmpp-2m")
    bad.conditions = {name: np.full_like(value, np.nan) for name, value in bad.conditions.items()}
    run_to_the_end(Denoiser(session, Profile(8), BatchRule()), [good, bad])
    assert isinstance(bad.error, BadOutput)
    assert bad.result is None
    assert bad.step == (1 if on_host else 6)
    assert good.error is None
    assert np.isfinite(good.result).all()


def test_two_threads_on_tasks_of_their_own_paint_what_one_does() -> None:
    engine = Denoiser(FakeNumpySession(), Profile(8), BatchRule())
    tasks = [[task(8 * thread + seed, 5 + seed % 3, 1.0 + seed % 2) for seed in range(8)] for thread in range(2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda own: run_to_the_end(engine, own), tasks))
    assert len({one.slot for own in tasks for one in own}) == 16
    for own in tasks:
        alone = [task(one.seed, one.plan.num_steps, one.guidance_scale) for one in own]
        run_to_the_end(Denoiser(FakeNumpySession(), Profile(8), BatchRule()), alone)
        for one, other in zip(own, alone, strict=True):
            np.testing.assert_array_equal(one.result, other.result)
