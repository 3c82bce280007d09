"""The torch backend on an NVIDIA GPU: what tests/unit shows on the CPU, with half precision and CUDA graphs."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from captory_engine.device import Device
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.samplers import make_plan
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.denoiser import TEXT, Denoiser, DenoiseTask
from captory_engine.errors import OutOfMemory
from captory_engine.scheduler import Profile
from captory_engine.sessions.options import SessionOptions, TorchOptions

torch = pytest.importorskip("torch", reason="needs torch and diffusers")
pytest.importorskip("diffusers")

from captory_bench.gpu import picto  # noqa: E402
from captory_bench.gpu.jobs import paint, task  # noqa: E402
from captory_bench.gpu.models import TINY_SD15, build_unet, open_unet  # noqa: E402
from captory_engine.sessions.torch import TorchSession  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]
ROLES = ["captioner_vision", "painter_text_encoder", "painter_unet", "painter_vae_decoder"]
# Mean absolute difference from fp32 on the CPU, relative to the mean absolute value.
TOLERANCES = {"fp32": 1e-2, "fp16": 2e-2, "bf16": 8e-2}


def options(device: str, dtype: str, *, graphs: bool = False, **others: Any) -> SessionOptions:
    return SessionOptions(torch=TorchOptions(device=device, dtype=dtype, graphs=graphs, **others))


def inputs_of(session: TorchSession, rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    made = {}
    for spec in session.inputs:
        shape = (rows, *spec.shape)
        integers = np.issubdtype(spec.dtype, np.integer)
        made[spec.name] = rng.integers(0, 1000, shape) if integers else rng.standard_normal(shape).astype(spec.dtype)
    return made


def tiny(device: str, dtype: str, *, graphs: bool = False, **others: Any) -> TorchSession:
    unet = build_unet(TINY_SD15, torch.device("cpu"), torch.float32)  # the same weights wherever it will run
    return open_unet(TINY_SD15, unet, options(device, dtype, graphs=graphs, **others))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("role", ROLES)
def test_picto_on_the_gpu_is_near_the_cpu(role: str, dtype: str) -> None:
    reference = picto.open_picto(options("cpu", "fp32")).sessions[role]
    found = picto.open_picto(options("cuda", dtype)).sessions[role]
    inputs = inputs_of(reference, 5)
    expected, outputs = reference.run(inputs), found.run(inputs)
    for name, array in expected.items():
        assert np.abs(outputs[name] - array).mean() <= TOLERANCES[dtype] * np.abs(array).mean(), name


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 3e-2), ("bf16", 1.5e-1)])  # so small a model rounds badly
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_graph_gives_what_eager_gives(dtype: str, tolerance: float, rows: int) -> None:
    graphs, eager = tiny("cuda", dtype, graphs=True, buckets=(2, 4, 8)), tiny("cuda", dtype)
    graphs.run(inputs_of(graphs, 8))
    outputs, computed = padded(graphs, inputs_of(graphs, rows))
    expected = eager.run(inputs_of(eager, rows))["out_sample"]
    assert computed == {1: 2, 3: 4, 8: 8}[rows]
    assert np.abs(outputs["out_sample"] - expected).mean() <= tolerance * np.abs(expected).mean()


def test_a_graph_is_replayed_over_new_values() -> None:
    session = tiny("cuda", "fp32", graphs=True, buckets=(4,))
    first, second = session.run(inputs_of(session, 4)), session.run(inputs_of(session, 3))
    assert not np.allclose(first["out_sample"][:3], second["out_sample"])
    np.testing.assert_array_equal(session.run(inputs_of(session, 4))["out_sample"], first["out_sample"])


def test_compiled_blocks_give_what_eager_gives() -> None:
    compiled = tiny("cuda", "fp32", graphs=True, buckets=(4,), compile_mode="default")
    eager = tiny("cuda", "fp32")
    inputs = inputs_of(eager, 4)
    expected = eager.run(inputs)["out_sample"]
    assert np.abs(compiled.run(inputs)["out_sample"] - expected).mean() <= 3e-2 * np.abs(expected).mean()


def latents(device: str, seeds: tuple[int, ...]) -> list[Any]:
    family = picto.open_picto(options(device, "fp32"))
    plan = make_plan(family.schedule, "ddim", 4, guided=True)
    text = gaussian_noise(0, (family.max_tokens, 128))
    tasks = [DenoiseTask(plan, seed, family.latents, {TEXT: text}, {TEXT: text * 0}, 2.0) for seed in seeds]
    return paint(Denoiser(family.sessions["painter_unet"], Profile(8), BatchRule()), tasks)


def test_an_image_depends_on_its_seed_and_not_on_the_device() -> None:
    found, expected = latents("cuda", (1, 2)), latents("cpu", (1, 2))
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).mean() <= 2e-2 * np.abs(other).mean()
    assert np.abs(found[0] - found[1]).mean() > 0.1 * np.abs(expected[0]).mean()


def test_picto_paints_on_the_gpu_what_it_paints_on_the_cpu() -> None:
    photos = [picto.photo_of(picto.FIRST_SCENE + index) for index in range(8)]
    reference, _ = picto.paint(picto.open_picto(options("cpu", "fp32")), photos)
    found, _ = picto.paint(picto.open_picto(options("cuda", "fp16", graphs=True)), photos)
    assert picto.agreement(found, reference)["ok"]


class Greedy(torch.nn.Module):
    """Needs more memory than the device has for more than two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> tuple[Any]:
        if len(sample) > 2:
            torch.empty(1 << 50, dtype=torch.uint8, device=sample.device)
        return (sample * 0.5,)


@pytest.mark.parametrize("graphs", [False, True])
def test_what_does_not_fit_is_told_and_what_fits_still_runs(graphs: bool) -> None:
    like = tiny("cuda", "fp32")
    settings = options("cuda", "fp32", graphs=graphs, buckets=(1, 2, 4))
    session = TorchSession("greedy", Greedy(), like.inputs, like.outputs, max_batch=4, options=settings)
    with pytest.raises(OutOfMemory):
        session.run(inputs_of(session, 4))
    assert session.run(inputs_of(session, 2))["out_sample"].shape[0] == 2


def test_an_array_that_does_not_fit_is_told() -> None:
    arrays = tiny("cuda", "fp32").arrays
    with pytest.raises(OutOfMemory, match="memory of cuda"), arrays.guard():
        arrays.zeros((1 << 50,), np.uint8)


async def test_out_of_memory_splits_the_batch_and_goes_on() -> None:
    like = tiny("cuda", "fp32")
    session = TorchSession("greedy", Greedy(), like.inputs, like.outputs, max_batch=8, options=options("cuda", "fp32"))
    device = Device([Denoiser(session, Profile(max_rows=8), BatchRule())])
    loop = asyncio.create_task(device.serve())
    tasks = [task(TINY_SD15, seed, 3, 1.0) for seed in range(8)]
    results = await asyncio.gather(*(device.submit("denoise", one) for one in tasks))
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    await device.close()
    assert all(np.isfinite(result).all() for result in results)
