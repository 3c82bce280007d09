"""Building, loading and running engines against a stand-in for TensorRT.

It shows what TensorRT is asked for and what is kept of it; that TensorRT then does it, tests/gpu shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import SAID, Fake
from tiny_models import scaler_inputs, write_scaler

from captory_engine.errors import BadModel, OutOfMemory, Unavailable
from captory_engine.repository import ModelFolder, open_model
from captory_engine.sessions.options import SessionOptions, TensorRtOptions, TorchOptions
from captory_engine.sessions.tensorrt_plans import Machine, Record, engines_root, load_plan

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from captory_engine.sessions.torch import TorchSession  # noqa: E402
from captory_export.tensorrt.build import build_model, this_machine  # noqa: E402
from captory_export.tensorrt.profiles import Span  # noqa: E402

MACHINE = Machine("NVIDIA H200", "9.0", Fake.__version__)
PROFILE = {"x": (Span(1, 2, 4), Span(1, 2, 8), Span(3, 3, 3)), "scale": (Span(1, 2, 4),)}
SHAPES = {"x": ([1, 1, 3], [2, 2, 3], [4, 8, 3]), "scale": ([1], [2], [4])}
SIGNATURE = {"x": np.float32, "scale": np.float32, "y": np.float32}
ON_TENSORRT = ("captory_export.tensorrt.network", "captory_engine.sessions.tensorrt")


@pytest.fixture
def with_fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fake]]:
    """Puts a fake in the place of TensorRT and of torch's GPUs; what was imported on top of it goes with it."""

    def put(*faults: str) -> Fake:
        fake = Fake(*faults)
        fake.signature = SIGNATURE
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        monkeypatch.setattr(torch.cuda, "device", fake.device)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
        return fake

    for name in ON_TENSORRT:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield put
    for name in ON_TENSORRT:
        sys.modules.pop(name, None)


def scaler(root: Path) -> ModelFolder:
    write_scaler(root)
    return open_model(root, "scaler")


def build(model: ModelFolder, root: Path, precision: str = "graph", *, anew: bool = False) -> tuple[Record, list[str]]:
    said: list[str] = []
    options = TensorRtOptions(precision, root / "engines")
    return build_model(model, [PROFILE], MACHINE, options, said.append, anew=anew), said


def kept(root: Path) -> list[str]:
    return sorted(path.name for path in engines_root(root / "engines").rglob("*") if path.is_file())


def test_tensorrt_is_asked_for_a_strongly_typed_network_with_the_profiles(
    tmp_path: Path, with_fake: Callable[..., Fake]
) -> None:
    fake, model = with_fake(), scaler(tmp_path)
    record, _ = build(model, tmp_path)
    shapes = {name: tuple(tuple(sizes) for sizes in ends) for name, ends in SHAPES.items()}
    assert fake.calls == [("network", 2), ("parse", model.model_path.read_bytes()), ("build", "network", [shapes], b"")]
    assert load_plan(tmp_path / "engines", record.key) == (b"a plan", record)
    assert (record.key.model, record.key.digest, record.profiles) == ("scaler", model.digest, [SHAPES])
    assert kept(tmp_path) == ["engine.json", "model.plan", "timing.cache"]


def test_an_engine_that_is_there_is_kept_unless_it_is_wanted_anew(
    tmp_path: Path, with_fake: Callable[..., Fake]
) -> None:
    fake, model = with_fake(), scaler(tmp_path)
    build(model, tmp_path)
    assert build(model, tmp_path)[1] == ["scaler: its engine is there"]
    assert sum(call[0] == "build" for call in fake.calls) == 1
    build(model, tmp_path, anew=True)
    assert fake.calls[-1][-1] == b"."  # with the timings of the first


def test_an_engine_for_other_shapes_is_built_again(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake, model = with_fake(), scaler(tmp_path)
    build(model, tmp_path)
    wider = {**PROFILE, "scale": (Span(1, 2, 3),)}
    options = TensorRtOptions("graph", tmp_path / "engines")
    record = build_model(model, [wider], MACHINE, options, str)
    assert sum(call[0] == "build" for call in fake.calls) == 2
    assert load_plan(tmp_path / "engines", record.key)[1] == record


def test_timings_that_tensorrt_refuses_are_not_used(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake, model = with_fake("cache"), scaler(tmp_path)
    build(model, tmp_path)
    build(model, tmp_path, anew=True)
    assert fake.calls[-1][-1] == b""


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("parse", "ONNX_UNSUPPORTED", "no importer registered for op"),
        ("profile", "PROFILE", "does not take the profile"),
        ("build", "ENGINE_BUILD", "builds no engine .*Could not find any implementation for node"),
    ],
)
def test_what_tensorrt_refuses_leaves_nothing(
    tmp_path: Path, with_fake: Callable[..., Fake], fault: str, reason: str, words: str
) -> None:
    with_fake(fault)
    with pytest.raises(BadModel, match=words) as refused:
        build(scaler(tmp_path), tmp_path)
    assert refused.value.reason == reason
    assert kept(tmp_path) == []


def session_module() -> ModuleType:
    return import_module("captory_engine.sessions.tensorrt")


def engine(tmp_path: Path, record: Record) -> Any:
    model, plan = open_model(tmp_path, "scaler"), b"a plan"
    return session_module().EngineModule(model, plan, record, torch.device("cpu"))


def session(tmp_path: Path, record: Record) -> Any:
    """Batches of one, two or four rows, as on a GPU, but called rather than captured."""
    model, options = open_model(tmp_path, "scaler"), TorchOptions(device="cpu", graphs=True, buckets=(1, 2, 4))
    return TorchSession(
        model.name,
        engine(tmp_path, record),
        model.inputs,
        model.outputs,
        max_batch=record.max_rows,
        options=SessionOptions(torch=options),
    )


def scaled(inputs: dict[str, Any]) -> Any:
    return inputs["x"] * inputs["scale"][:, None, None]


def tensors(rows: int) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in scaler_inputs(rows).items()}


def test_each_shape_has_a_context_and_rewrites_its_outputs(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    module = engine(tmp_path, record)
    two, more = tensors(2), {name: value + 1 for name, value in tensors(2).items()}
    (first,) = module(**two)
    torch.testing.assert_close(first, scaled(two))
    (second,) = module(**more)
    assert second is first
    torch.testing.assert_close(second, scaled(more))
    (other,) = module(**tensors(3))
    torch.testing.assert_close(other, scaled(tensors(3)))
    assert [context.profile for context in fake.contexts] == [0, 0]


def test_contexts_share_memory_and_none_has_too_little(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    module = engine(tmp_path, record)
    for rows in (2, 4, 1, 3):
        module(**tensors(rows))
    two, four, *smaller = [context.memory for context in fake.contexts]
    assert (two[1], four[1]) == (512, 1024)
    assert smaller == [four, four]
    module(**tensors(2))
    assert [context.memory for context in fake.contexts] == [two, four, *smaller]


def test_a_session_pads_to_its_sizes_and_gives_what_was_asked_for(
    tmp_path: Path, with_fake: Callable[..., Fake]
) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    running = session(tmp_path, record)
    for rows in (4, 3, 1):
        np.testing.assert_allclose(running.run(scaler_inputs(rows))["y"], scaled(scaler_inputs(rows)))
    assert len(fake.contexts) == 2
    running.close()
    with pytest.raises(Unavailable, match="is closed"):
        running.run(scaler_inputs(1))


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("memory", OutOfMemory, "OUT_OF_MEMORY"),
        ("execute", OutOfMemory, "OUT_OF_MEMORY"),
        ("context", Unavailable, "BACKEND_FAILED"),
    ],
)
def test_what_tensorrt_says_tells_memory_from_the_rest(
    tmp_path: Path,
    with_fake: Callable[..., Fake],
    caplog: pytest.LogCaptureFixture,
    fault: str,
    error: type[Unavailable],
    reason: str,
) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    running = session(tmp_path, record)
    fake.faults.add(fault)
    with pytest.raises(Unavailable) as refused:
        running.run(scaler_inputs(1))
    assert (type(refused.value), refused.value.reason) == (error, reason)
    assert SAID[fault] in caplog.text
    fake.faults.clear()
    np.testing.assert_allclose(running.run(scaler_inputs(1))["y"], scaled(scaler_inputs(1)))


def test_a_failure_is_not_told_with_the_words_of_an_earlier_one(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    running = session(tmp_path, record)
    for fault, error in (("memory", OutOfMemory), ("context", Unavailable)):
        fake.faults = {fault}
        with pytest.raises(Unavailable) as refused:
            running.run(scaler_inputs(1))
        assert type(refused.value) is error


def test_tensorrt_runs_on_the_session_s_gpu(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    running = session(tmp_path, record)
    fake.gpus.clear()
    running.arrays.on_host = False
    running.run(scaler_inputs(1))
    assert fake.gpus == {"cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_an_engine_is_built_and_loaded_on_the_gpu_that_is_named(
    tmp_path: Path, with_fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, model = with_fake(), scaler(tmp_path)
    options = TensorRtOptions("graph", tmp_path / "engines", "cuda:1")
    build_model(model, [PROFILE], MACHINE, options, str)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: MACHINE.gpu)
    with pytest.raises(BadModel, match="no device 'cuda:1'"):  # by torch, whose part comes after TensorRT's
        session_module().open_engine(model, SessionOptions(tensorrt=options))
    assert fake.gpus == {"cuda:1"}


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ({**SIGNATURE, "y": np.float16}, "the engine has scale float32, x float32, y float16"),
        ({"x": np.float32, "y": np.float32}, "the engine has x float32, y float32"),
        ({"x": np.float32, "scale": np.float32}, "the engine has scale float32, x float32"),
        ({**SIGNATURE, "z": np.float32}, "the engine has scale float32, x float32, y float32, z float32"),
    ],
)
def test_an_engine_of_other_tensors_is_refused(
    tmp_path: Path, with_fake: Callable[..., Fake], signature: dict[str, Any], words: str
) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    fake.signature = signature
    with pytest.raises(BadModel, match=rf"{words}\.$") as refused:
        engine(tmp_path, record)
    assert refused.value.reason == "ENGINE_SIGNATURE"


def test_an_engine_that_tensorrt_cannot_load_is_refused(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    fake.faults.add("deserialize")
    with pytest.raises(BadModel, match="cannot load the engine of model 'scaler': Error Code 1: Serialization"):
        engine(tmp_path, record)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_a_machine_without_a_gpu_says_so(with_fake: Callable[..., Fake]) -> None:
    with_fake()
    with pytest.raises(BadModel, match="TensorRT needs an NVIDIA GPU"):
        this_machine(TensorRtOptions())


def test_a_machine_without_tensorrt_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, with_fake: Callable[..., Fake]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BadModel, match=r"pip install 'captory\[tensorrt\]'"):
        this_machine(TensorRtOptions())
