"""The torch backend beside ONNX Runtime on the shipped family: the same names, shapes and, but for rounding, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captory_engine.errors import BadModel, InvalidInput, Unavailable
from captory_engine.manifest import write_manifest
from captory_engine.repository import default_repository, open_model
from captory_engine.sessions.base import Session
from captory_engine.sessions.options import SessionOptions, TorchOptions
from captory_engine.sessions.registry import open_session

torch = pytest.importorskip("torch", reason="the torch backend needs torch and diffusers (make test installs them)")
pytest.importorskip("diffusers")

MODELS = [
    "picto_captioner_vision",
    "picto_captioner_decoder",
    "picto_writer_decoder",
    "picto_painter_text_encoder",
    "picto_painter_unet",
    "picto_painter_vae_decoder",
]
TOLERANCE = 2e-3  # absolute, beside values up to about 20
NUM_NEW, NUM_PAST = 3, 7
ON_CPU = TorchOptions(device="cpu")


def session(backend: str, name: str, torch_options: TorchOptions = ON_CPU) -> Session:
    options = SessionOptions(num_threads=1, torch=torch_options)
    return open_session(backend, open_model(default_repository(), name), options)


def example(model: Session, rows: int) -> dict[str, Any]:
    """Inputs of plausible values, the cache partly valid."""
    rng = np.random.default_rng(rows)
    inputs: dict[str, Any] = {}
    for spec in model.inputs:
        dynamic = NUM_PAST if spec.name.startswith("past") else NUM_NEW
        shape = (rows, *(dynamic if size == -1 else size for size in spec.shape))
        inputs[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        if spec.name == "input_ids":
            inputs[spec.name] = rng.integers(0, 1000, shape)
    if "past_mask" in inputs:
        valid = rng.integers(0, NUM_PAST + 1, rows)
        inputs["past_mask"] = (np.arange(NUM_PAST) < valid[:, None]).astype(np.float32)
        inputs["position_ids"] = valid[:, None] + np.arange(NUM_NEW)
    if "timestep" in inputs:
        inputs["timestep"] = (rng.random(rows) * 999).astype(np.float32)
    return inputs


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_exported_graph(name: str) -> None:
    reference, found = session("onnx", name), session("torch", name)
    for rows in (1, 3):
        inputs = example(reference, rows)
        expected, outputs = reference.run(inputs), found.run(inputs)
        assert outputs.keys() == expected.keys()
        for output in expected:
            np.testing.assert_allclose(outputs[output], expected[output], rtol=1e-3, atol=TOLERANCE, err_msg=output)


def test_tensors_in_give_tensors_out() -> None:
    model = session("torch", "picto_painter_unet")
    inputs = example(model, 2)
    tensors = model.run({name: torch.from_numpy(value) for name, value in inputs.items()})
    assert isinstance(tensors["out_sample"], torch.Tensor)
    np.testing.assert_array_equal(tensors["out_sample"].numpy(), model.run(inputs)["out_sample"])


def test_half_precision_stays_near() -> None:
    name = "picto_painter_unet"
    inputs = example(session("onnx", name), 2)
    expected = session("onnx", name).run(inputs)["out_sample"]
    found = session("torch", name, TorchOptions(device="cpu", dtype="bf16")).run(inputs)["out_sample"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).mean() < 0.05


def test_inputs_are_checked_before_anything_is_computed() -> None:
    model = session("torch", "picto_painter_unet")
    inputs = example(model, 2)
    with pytest.raises(InvalidInput, match="float64"):
        model.run({name: torch.from_numpy(value).double() for name, value in inputs.items()})
    with pytest.raises(InvalidInput, match="inputs are"):
        model.run({"sample": inputs["sample"]})


def test_closed_session_is_unavailable() -> None:
    model = session("torch", "picto_painter_vae_decoder")
    inputs = example(model, 1)
    model.close()
    with pytest.raises(Unavailable):
        model.run(inputs)


def test_the_digest_is_that_of_the_weights_that_run() -> None:
    assert session("torch", "picto_painter_unet").digest != session("onnx", "picto_painter_unet").digest
    assert session("torch", "picto_captioner_vision").digest == session("torch", "picto_captioner_decoder").digest


@pytest.mark.parametrize(("name", "reason"), [("picto_reader", "CHECKPOINT_ROLE"), (MODELS[0], "CHECKPOINT_MISSING")])
def test_a_model_without_a_checkpoint_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(BadModel) as caught:
        session("torch", name, TorchOptions(device="cpu", checkpoints=tmp_path))
    assert caught.value.reason == reason


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "picto" / "painter" / "text_encoder"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"nothing")
    write_manifest(folder)
    with pytest.raises(BadModel) as caught:
        session("torch", "picto_painter_text_encoder", TorchOptions(device="cpu", checkpoints=tmp_path))
    assert caught.value.reason == "CHECKPOINT_UNREADABLE"
