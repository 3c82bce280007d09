"""TensorRT engines on an NVIDIA GPU: built from the embedded family's graphs, and run against ONNX Runtime's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captory_engine.engines.batching import padded
from captory_engine.errors import BadModel, InvalidInput, Unavailable
from captory_engine.family import find_family
from captory_engine.repository import ModelFolder, default_repository, open_model
from captory_engine.sessions.arrays import computed_rows
from captory_engine.sessions.options import SessionOptions, TensorRtOptions
from captory_engine.sessions.registry import open_session

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("tensorrt", reason="needs TensorRT")
pytest.importorskip("onnx", reason="needs onnx")

from captory_export.tensorrt.build import build_model, checked_profiles, this_machine  # noqa: E402
from captory_export.tensorrt.gpu_export import TOLERANCES, difference  # noqa: E402
from captory_export.tensorrt.profiles import Profile, example  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]
ROOT, FAMILY = find_family(default_repository())
UNET = "picto_painter_unet"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for all tests: an engine is built once."""
    return tmp_path_factory.mktemp("engines")


def built(
    name: str, engines: Path, precision: str = "fp16", device: str = "cuda"
) -> tuple[ModelFolder, list[Profile], SessionOptions]:
    model, profiles = open_model(ROOT, name), checked_profiles(ROOT, FAMILY, name)
    options = TensorRtOptions(precision, engines, device)
    build_model(model, profiles, this_machine(options), options, print)
    return model, profiles, SessionOptions(tensorrt=options)


@pytest.mark.parametrize("name", FAMILY.models)
def test_every_graph_of_the_family_in_fp16_is_near_the_cpu(name: str, engines: Path) -> None:
    model, profiles, options = built(name, engines)
    reference, engine = open_session("onnx", model), open_session("tensorrt", model, options)
    for profile in profiles:
        for rows in (1, 3, 8):
            inputs = example(profile, model, rows)
            assert difference(reference.run(inputs), engine.run(inputs)) <= TOLERANCES["fp16"]


@pytest.mark.parametrize("precision", ["graph", "bf16"])
def test_other_types_are_near_the_cpu(precision: str, engines: Path) -> None:
    model, (profile,), options = built(UNET, engines, precision)
    inputs = example(profile, model, 5)
    found = open_session("tensorrt", model, options).run(inputs)
    assert difference(open_session("onnx", model).run(inputs), found) <= TOLERANCES[precision]


def test_a_graph_is_replayed_over_new_values_and_padded_to_its_bucket(engines: Path) -> None:
    model, (profile,), options = built(UNET, engines)
    engine = open_session("tensorrt", model, options)
    first, second = (engine.run(example(profile, model, rows))["out_sample"] for rows in (4, 3))
    assert computed_rows(engine, 3) == 4
    assert not np.allclose(first[:3], second)
    np.testing.assert_array_equal(engine.run(example(profile, model, 4))["out_sample"], first)


def test_tensors_of_the_gpu_stay_there(engines: Path) -> None:
    model, (profile,), options = built(UNET, engines)
    engine: Any = open_session("tensorrt", model, options)
    inputs = example(profile, model, 2)
    there = engine.run({name: engine.arrays.from_host(array) for name, array in inputs.items()})["out_sample"]
    assert there.is_cuda
    np.testing.assert_array_equal(there.cpu().numpy(), engine.run(inputs)["out_sample"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second NVIDIA GPU here")
def test_a_second_gpu_is_used_where_it_is_named(engines: Path) -> None:
    model, (profile,), options = built(UNET, engines, device="cuda:1")
    engine: Any = open_session("tensorrt", model, options)
    inputs = example(profile, model, 3)
    there = engine.run({name: engine.arrays.from_host(array) for name, array in inputs.items()})["out_sample"]
    assert there.device == torch.device("cuda:1")
    found = {"out_sample": there.cpu().numpy()}
    assert difference(open_session("onnx", model).run(inputs), found) <= TOLERANCES["fp16"]


def test_what_tensorrt_says_is_not_printed_on_stdout(engines: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, profiles, options = built(UNET, engines)
    build_model(model, profiles, this_machine(options.tensorrt), options.tensorrt, lambda _: None, anew=True)
    open_session("tensorrt", model, options).run(example(profiles[0], model, 1))
    assert "TRT" not in capfd.readouterr().out


def test_more_rows_than_the_engine_takes_are_run_in_slices(engines: Path) -> None:
    model, (profile,), options = built(UNET, engines)
    engine = open_session("tensorrt", model, options)
    outputs, _ = padded(engine, example(profile, model, engine.max_batch + 3))
    assert outputs["out_sample"].shape[0] == engine.max_batch + 3
    assert np.isfinite(outputs["out_sample"]).all()


def test_a_shape_that_no_profile_has_is_refused(engines: Path) -> None:
    model, (decode, _), options = built("picto_captioner_decoder", engines)
    inputs = example(decode, model, 1)
    past = {name: array for name, array in inputs.items() if name.startswith("past_")}
    longer = {name: np.concatenate([array, array], axis=1 if array.ndim == 2 else 3) for name, array in past.items()}
    with pytest.raises(InvalidInput, match="not built for the shapes"):
        open_session("tensorrt", model, options).run({**inputs, **longer})


def test_an_engine_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="captory export --tensorrt"):
        open_session("tensorrt", open_model(ROOT, UNET), SessionOptions(tensorrt=TensorRtOptions(engines=tmp_path)))


def test_a_closed_engine_is_closed(engines: Path) -> None:
    model, (profile,), options = built(UNET, engines)
    engine = open_session("tensorrt", model, options)
    engine.close()
    with pytest.raises(Unavailable, match="is closed"):
        engine.run(example(profile, model, 1))
