"""ONNX Runtime behind the Session contract."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import (
    SCALER_CONFIG,
    external_graph,
    scaler_graph,
    scaler_inputs,
    write_model,
    write_scaler,
)

from captory_engine.errors import BadModel, BadOutput, InvalidInput, Unavailable
from captory_engine.repository import open_model
from captory_engine.sessions.base import Session
from captory_engine.sessions.options import SessionOptions
from captory_engine.sessions.registry import open_session

EXTERNAL_CONFIG = """
name: "external"
max_batch_size: 2
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""

WEIGHTS = np.arange(4, dtype=np.float32).tobytes()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    write_scaler(tmp_path)
    return open_session("onnx", open_model(tmp_path, "scaler"), SessionOptions(num_threads=1))


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (4, 5), (2, 0)])
def test_runs_rows_of_any_length(session: Session, batch: int, length: int) -> None:
    inputs = scaler_inputs(batch, length)
    outputs = session.run(inputs)
    np.testing.assert_array_equal(outputs["y"], inputs["x"] * inputs["scale"][:, None, None])


def test_backend_names_what_exactness_depends_on(session: Session) -> None:
    words = session.backend.split()
    assert words[0] == "onnxruntime"
    assert words[2:4] == ["CPUExecutionProvider", "threads=1"]
    assert words[4].startswith("cpu=")


@pytest.mark.parametrize(
    "change",
    [
        {"x": np.zeros((2, 2, 4), np.float32)},
        {"x": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((2, 2, 3), np.float64)},
        {"x": np.zeros((3, 2, 3), np.float32)},
        {"scale": np.zeros((2, 1), np.float32)},
        {"more": np.zeros(2, np.float32)},
    ],
)
def test_refuses_what_differs_from_the_specs(session: Session, change: dict[str, np.ndarray]) -> None:
    with pytest.raises(InvalidInput, match="scaler"):
        session.run({**scaler_inputs(2), **change})


@pytest.mark.parametrize("batch", [0, 5])
def test_refuses_batches_outside_the_limit(session: Session, batch: int) -> None:
    with pytest.raises(InvalidInput, match="outside 1 to 4"):
        session.run(scaler_inputs(batch))


def test_refuses_a_missing_input(session: Session) -> None:
    with pytest.raises(InvalidInput, match="inputs are x"):
        session.run({"x": np.zeros((1, 2, 3), np.float32)})


def test_closed_session_is_unavailable(session: Session) -> None:
    session.close()
    with pytest.raises(Unavailable):
        session.run(scaler_inputs(1))


def test_output_of_another_batch_size_is_bad_output(tmp_path: Path) -> None:
    write_model(tmp_path, "scaler", SCALER_CONFIG, scaler_graph(sum_rows=True))
    session = open_session("onnx", open_model(tmp_path, "scaler"))
    with pytest.raises(BadOutput, match="'y'"):
        session.run(scaler_inputs(3))


def test_graph_that_fails_is_unavailable_without_its_words(tmp_path: Path) -> None:
    config = SCALER_CONFIG.replace("dims: [ -1, 3 ]", "dims: [ -1, -1 ]", 1)
    write_model(tmp_path, "scaler", config, scaler_graph())
    session = open_session("onnx", open_model(tmp_path, "scaler"))
    with pytest.raises(Unavailable, match=r"^scaler could not be run\.$"):
        session.run({"x": np.zeros((1, 2, 4), np.float32), "scale": np.zeros(1, np.float32)})


def test_graph_with_other_names_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "scaler", SCALER_CONFIG.replace('"y"', '"z"'), scaler_graph())
    with pytest.raises(BadModel, match="declared inputs"):
        open_session("onnx", open_model(tmp_path, "scaler"))


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "scaler", SCALER_CONFIG, b"not a graph")
    with pytest.raises(BadModel, match="cannot load"):
        open_session("onnx", open_model(tmp_path, "scaler"))


def test_provider_that_is_absent_is_named(tmp_path: Path) -> None:
    write_scaler(tmp_path)
    with pytest.raises(BadModel, match="NoSuchProvider"):
        open_session("onnx", open_model(tmp_path, "scaler"), SessionOptions(providers=("NoSuchProvider",)))


def _write_external(root: Path, location: str, files: dict[str, bytes] | None = None) -> None:
    write_model(root, "external", EXTERNAL_CONFIG, external_graph(location, 4), files)


@pytest.mark.parametrize("location", ["weights.data", "sub/weights.data"])
def test_external_data_beside_the_graph_is_read(tmp_path: Path, location: str) -> None:
    _write_external(tmp_path, location, {f"1/{location}": WEIGHTS})
    session = open_session("onnx", open_model(tmp_path, "external"))
    np.testing.assert_array_equal(session.run({"x": np.zeros((1, 4), np.float32)})["y"], [[0, 1, 2, 3]])


@pytest.mark.parametrize("location", ["../secret.data", "../../secret.data", "sub/../../../secret.data", "{absolute}"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.data").write_bytes(WEIGHTS)
    absolute = tmp_path / "secret.data"
    _write_external(tmp_path, location.format(absolute=absolute), {"secret.data": WEIGHTS, "1/sub/some": b"-"})
    with pytest.raises(BadModel, match="cannot load"):
        open_session("onnx", open_model(tmp_path, "external"))


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_external_data_through_a_link_is_refused(tmp_path: Path, link: str) -> None:
    (tmp_path / "secret.data").write_bytes(WEIGHTS)
    _write_external(tmp_path, "weights.data")
    getattr(tmp_path / "external" / "1" / "weights.data", link)(tmp_path / "secret.data")
    with pytest.raises(BadModel, match=r"is a link|extra 1/weights.data"):
        open_model(tmp_path, "external")
