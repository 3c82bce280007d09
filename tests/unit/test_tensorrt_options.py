"""How TensorRT and ONNX Runtime's providers are set up: file, environment and flags, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from pydantic import ValidationError
from tiny_models import scaler_inputs, write_scaler

from captory_engine.errors import BadModel
from captory_engine.repository import open_model
from captory_engine.sessions import onnx
from captory_engine.sessions.options import SessionOptions, TensorRtOptions
from captory_engine.sessions.registry import open_session
from captory_server.config import explain, load

CPU, CUDA, TENSORRT = "CPUExecutionProvider", onnx.CUDA, onnx.TENSORRT


def test_providers_come_with_commas_or_as_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().providers == (CPU,)
    file = tmp_path / "captory.yaml"
    file.write_text(f"providers: [{TENSORRT}, {CPU}]\n")
    assert load(file).providers == (TENSORRT, CPU)
    monkeypatch.setenv("CAPTORY_PROVIDERS", f"{CUDA}, {CPU}")
    assert load(file).providers == (CUDA, CPU)
    assert load(file, providers=CPU).providers == (CPU,)


def test_tensorrt_is_set_up_from_file_environment_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().tensorrt == TensorRtOptions()
    file = tmp_path / "captory.yaml"
    file.write_text("tensorrt: {precision: graph, device: 'cuda:1', engines: /engines}\n")
    monkeypatch.setenv("CAPTORY_TENSORRT__PRECISION", "bf16")
    assert load(file).tensorrt == TensorRtOptions("bf16", Path("/engines"), "cuda:1")
    assert load(file, tensorrt={"device": "cuda:0"}).tensorrt.device == "cuda:0"


@pytest.mark.parametrize(
    "wrong", [{"tensorrt": {"precision": "int4"}}, {"tensorrt": {"device": "cpu"}}, {"providers": ""}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        load(**wrong)
    assert explain(refused.value)[0].startswith(next(iter(wrong)))


def test_nvidia_s_providers_are_told_the_gpu_and_tensorrt_s_more(tmp_path: Path) -> None:
    options = SessionOptions(
        providers=(TENSORRT, CUDA, CPU), tensorrt=TensorRtOptions("bf16", tmp_path, device="cuda:1")
    )
    (name, told), cuda, cpu = onnx._providers(options)
    assert (name, cuda, cpu) == (TENSORRT, (CUDA, {"device_id": "1"}), CPU)
    assert told["device_id"] == "1"
    assert (told["trt_fp16_enable"], told["trt_bf16_enable"]) == ("False", "True")
    assert Path(told["trt_engine_cache_path"]).is_dir()
    assert f"{TENSORRT}:bf16+{CUDA}" in onnx.describe_backend(options)


def test_without_tensorrt_s_provider_no_folder_is_made(tmp_path: Path) -> None:
    assert onnx._providers(SessionOptions(tensorrt=TensorRtOptions(engines=tmp_path / "engines"))) == [CPU]
    assert not list(tmp_path.iterdir())


def test_a_provider_that_does_not_start_is_no_silent_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scaler(tmp_path)
    model, options = open_model(tmp_path, "scaler"), SessionOptions(providers=(CUDA, CPU))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    start = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, settings, _: start(path, settings, [CPU]))
    with pytest.raises(BadModel, match=f"cannot start {CUDA}"):
        open_session("onnx", model, options)
    assert open_session("onnx", model).run(scaler_inputs(1))["y"].shape == (1, 2, 3)
