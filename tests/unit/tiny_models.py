"""Model folders small enough to build in a test, in Triton's layout."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from captory_engine.manifest import write_manifest

SCALER_CONFIG = """
name: "scaler"
backend: "onnxruntime"
max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] },
  { name: "scale" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } }
]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
"""


def scaler_graph(*, sum_rows: bool = False) -> onnx.ModelProto:
    """y = x * scale, row by row; with `sum_rows` the batch is summed away, as a broken model would."""
    nodes = [
        helper.make_node("Unsqueeze", ["scale", "axes"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["product"]),
        helper.make_node("ReduceSum", ["product", "first"], ["y"], keepdims=1)
        if sum_rows
        else helper.make_node("Identity", ["product"], ["y"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 3]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "length", 3])]
    graph = helper.make_graph(nodes, "scaler", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def external_graph(location: str, num_values: int) -> onnx.ModelProto:
    """y = x + w, with w read from the file `location`."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[num_values])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * num_values))):
        weights.external_data.add(key=key, value=value)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", num_values])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", num_values])]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "external", inputs, outputs, [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_model(
    root: Path, name: str, config: str, graph: onnx.ModelProto | bytes, files: Mapping[str, bytes] | None = None
) -> Path:
    """Write a model folder, with more `files` by relative path, and its manifest; return the folder."""
    folder = root / name
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    everything = {"config.pbtxt": config.encode(), "1/model.onnx": data, **(files or {})}
    for path, content in everything.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    write_manifest(folder)
    return folder


def write_scaler(root: Path, name: str = "scaler") -> Path:
    """Write the sound model of these tests."""
    return write_model(root, name, SCALER_CONFIG.replace('"scaler"', f'"{name}"'), scaler_graph())


def scaler_inputs(batch: int, length: int = 2) -> dict[str, np.ndarray]:
    """Inputs of the scaler with a different value in each row."""
    x = np.arange(batch * length * 3, dtype=np.float32).reshape(batch, length, 3)
    return {"x": x, "scale": np.arange(1, batch + 1, dtype=np.float32)}
