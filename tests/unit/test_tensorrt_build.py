"""Building and loading engines against a stand-in for TensorRT.

It shows what TensorRT is asked for and what is kept of it; that TensorRT then does it, tests/gpu shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import Fake
from tiny_models import write_scaler

from captory_engine.errors import BadModel, InvalidInput
from captory_engine.repository import ModelFolder, open_model
from captory_engine.sessions.options import TensorRtOptions
from captory_engine.sessions.tensorrt_plans import Machine, Record, engines_root, load_plan

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from captory_export.tensorrt.build import build_model, this_machine  # noqa: E402
from captory_export.tensorrt.profiles import Span  # noqa: E402

MACHINE = Machine("NVIDIA H200", "9.0", Fake.__version__)
PROFILE = {"x": (Span(1, 2, 4), Span(1, 2, 8), Span(3, 3, 3)), "scale": (Span(1, 2, 4),)}
SHAPES = {"x": ([1, 1, 3], [2, 2, 3], [4, 8, 3]), "scale": ([1], [2], [4])}
SIGNATURE = {"x": np.float32, "scale": np.float32, "y": np.float32}
ON_TENSORRT = ("captory_export.tensorrt.network", "captory_engine.sessions.tensorrt")


@pytest.fixture
def with_fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fake]]:
    """Puts a fake in TensorRT's place; what was imported on top of it goes with it."""

    def put(*faults: str) -> Fake:
        fake = Fake(*faults)
        fake.signature = SIGNATURE
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
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
        ("parse", "ONNX_UNSUPPORTED", "no plugin for MatMulNBits"),
        ("profile", "PROFILE", "does not take the profile"),
        ("build", "ENGINE_BUILD", "builds no engine"),
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


def test_a_loaded_engine_knows_its_rows_and_finds_the_profile(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    assert engine(tmp_path, record).max_rows == 4
    few = {"x": ([1, 1, 3], [1, 1, 3], [1, 1, 3]), "scale": ([1], [1], [1])}
    profile_of = session_module().profile_of
    assert profile_of([few, SHAPES], {"x": (1, 1, 3), "scale": (1,)}, "scaler") == 0
    assert profile_of([few, SHAPES], {"x": (4, 8, 3), "scale": (4,)}, "scaler") == 1
    with pytest.raises(InvalidInput, match="not built for the shapes"):
        profile_of([few, SHAPES], {"x": (4, 9, 3), "scale": (4,)}, "scaler")


def test_an_engine_of_other_tensors_is_refused(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    fake.signature = {**SIGNATURE, "y": np.float16}
    with pytest.raises(BadModel, match="the engine has scale float32, x float32, y float16"):
        engine(tmp_path, record)


def test_an_engine_that_tensorrt_cannot_load_is_refused(tmp_path: Path, with_fake: Callable[..., Fake]) -> None:
    fake = with_fake()
    record, _ = build(scaler(tmp_path), tmp_path)
    fake.faults.add("deserialize")
    with pytest.raises(BadModel, match="cannot load the engine"):
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
