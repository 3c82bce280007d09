"""Our Python-based Triton backend, run as Triton runs it, on small graphs and without Triton."""

import json
from pathlib import Path
from typing import Any

import fake_triton
import numpy as np
import onnx
import pytest
from fake_triton import InferenceResponse, Request, TritonError, TritonModelException
from onnx import TensorProto, helper
from tiny_models import scaler_graph, scaler_inputs

from captory_export.triton.host import OUR_BACKENDS

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}
SCALE = {"name": "scale", "data_type": "TYPE_FP32", "dims": [1]}
Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 3]}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake_triton.install(monkeypatch)
    return fake_triton.load(OUR_BACKENDS / "onnxruntime" / "model.py")


def open_model(backend: Any, root: Path, graph: onnx.ModelProto, **config: Any) -> Any:
    """An instance of a model, with `runs` of its graph counted."""
    (root / "1").mkdir(parents=True)
    onnx.save(graph, root / "1" / config.get("default_model_filename", "model.onnx"))
    config = {"max_batch_size": 8, "input": [X, SCALE], "output": [Y]} | config
    model = backend.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config), "model_repository": str(root), "model_version": "1"})
    model.runs = []
    session = model._session
    model._session = Counted(session, model.runs)
    return model


class Counted:
    """A session that notes the rows of every run."""

    def __init__(self, session: Any, runs: list[int]) -> None:
        self._session, self._runs = session, runs

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._runs.append(len(next(iter(inputs.values()))))
        return self._session.run(names, inputs)


def scaling(rows: int, length: int = 2, **more: Any) -> Request:
    return Request(scaler_inputs(rows, length), ["y"], **more)


def check_scaled(request: Request, response: InferenceResponse) -> None:
    expected = request.arrays["x"] * request.arrays["scale"].reshape(-1, 1, 1)
    np.testing.assert_array_equal(response.arrays["y"], expected)


def error_of(response: InferenceResponse) -> TritonError:
    assert response.error is not None
    return response.error


def test_requests_that_come_together_are_one_run(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph())
    requests = [scaling(1), scaling(3), scaling(2)]
    responses = model.execute(requests)
    assert model.runs == [6]
    for request, response in zip(requests, responses, strict=True):
        check_scaled(request, response)


def test_other_shapes_run_apart_and_answers_keep_their_order(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph())
    requests = [scaling(1, 2), scaling(2, 5), scaling(1, 2)]
    responses = model.execute(requests)
    assert sorted(model.runs) == [2, 2]
    for request, response in zip(requests, responses, strict=True):
        check_scaled(request, response)


def test_a_bad_request_fails_alone(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph())
    bad = Request(scaler_inputs(2) | {"scale": np.ones(5, np.float32)}, ["y"])
    requests = [scaling(1), bad, scaling(2)]
    first, second, third = model.execute(requests)
    check_scaled(requests[0], first)
    check_scaled(requests[2], third)
    assert error_of(second).code == TritonError.INVALID_ARG
    assert error_of(second).message


def test_a_wrong_type_is_an_error_of_its_request(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph())
    (response,) = model.execute([Request(scaler_inputs(1) | {"scale": np.ones(1, np.float64)}, ["y"])])
    assert "double" in error_of(response).message


def test_a_cancelled_request_is_not_run(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph())
    requests = [scaling(2, cancelled=True), scaling(1)]
    cancelled, answered = model.execute(requests)
    assert error_of(cancelled).code == TritonError.CANCELLED
    check_scaled(requests[1], answered)
    assert model.runs == [1]


def test_rows_that_get_lost_are_an_error(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph(sum_rows=True))
    (response,) = model.execute([scaling(3)])
    assert "3 rows went in" in error_of(response).message


def test_only_wanted_outputs_are_computed_and_sent(backend: Any, tmp_path: Path) -> None:
    config = {"input": [X], "output": [Y, {**Y, "name": "z"}]}
    model = open_model(backend, tmp_path, two_outputs_graph(), **config)
    x = np.ones((1, 2, 3), np.float32)
    one, both = model.execute([Request({"x": x}, ["z"]), Request({"x": x}, ["y", "z"])])
    assert set(one.arrays) == {"z"}
    assert set(both.arrays) == {"y", "z"}
    np.testing.assert_array_equal(one.arrays["z"], -x)


def test_without_a_batch_dimension_every_request_is_a_run(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph(), max_batch_size=0)
    requests = [scaling(1), scaling(1)]
    responses = model.execute(requests)
    assert model.runs == [1, 1]
    for request, response in zip(requests, responses, strict=True):
        check_scaled(request, response)


def test_bytes_go_through_as_text(backend: Any, tmp_path: Path) -> None:
    words = {"name": "words", "data_type": "TYPE_STRING", "dims": [2]}
    model = open_model(backend, tmp_path, text_graph(), input=[words], output=[{**words, "name": "same"}])
    sent = np.array([["häuser".encode(), b""]], np.object_)
    (response,) = model.execute([Request({"words": sent}, ["same"])])
    np.testing.assert_array_equal(response.arrays["same"], sent)


def test_bytes_that_are_no_text_fail_alone(backend: Any, tmp_path: Path) -> None:
    words = {"name": "words", "data_type": "TYPE_STRING", "dims": [1]}
    model = open_model(backend, tmp_path, text_graph(), input=[words], output=[{**words, "name": "same"}])
    bad, good = (Request({"words": np.array([[text]], np.object_)}, ["same"]) for text in (b"\xff", b"a"))
    refused, answered = model.execute([bad, good])
    assert error_of(refused).code == TritonError.INVALID_ARG
    assert answered.arrays["same"].tolist() == [[b"a"]]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"input": [X]}, "scale"),
        ({"input": [X, SCALE, {**SCALE, "name": "more"}]}, "more"),
        ({"input": [X, {**SCALE, "data_type": "TYPE_INT64"}]}, "TYPE_INT64"),
        ({"input": [X, {**SCALE, "data_type": "TYPE_BF16"}]}, "TYPE_BF16"),
        ({"output": [{**Y, "name": "z"}]}, "'z'"),
        ({"parameters": {"intra_op_thread_count": {"string_value": "two"}}}, "'two'"),
    ],
)
def test_a_configuration_that_is_not_the_graphs_is_refused(
    backend: Any, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(TritonModelException, match=words):
        open_model(backend, tmp_path, scaler_graph(), **config)


def test_the_file_may_have_another_name(backend: Any, tmp_path: Path) -> None:
    model = open_model(backend, tmp_path, scaler_graph(), default_model_filename="graph.onnx")
    requests = [scaling(1)]
    check_scaled(requests[0], model.execute(requests)[0])


def test_threads_come_from_the_parameter_then_the_environment(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTORY_TRITON_THREADS", "3")
    assert backend._options({}).intra_op_num_threads == 3
    parameters = {"intra_op_thread_count": {"string_value": "5"}}
    assert backend._options({"parameters": parameters}).intra_op_num_threads == 5


def two_outputs_graph() -> onnx.ModelProto:
    """y = x, z = -x."""
    shape = ["batch", "length", 3]
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xyz")
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    graph = helper.make_graph(nodes, "two", [x], [y, z])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def text_graph() -> onnx.ModelProto:
    words, same = (
        helper.make_tensor_value_info(name, TensorProto.STRING, ["batch", "size"]) for name in ("words", "same")
    )
    graph = helper.make_graph([helper.make_node("Identity", ["words"], ["same"])], "text", [words], [same])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
