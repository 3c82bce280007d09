"""Whether a graph's values fit fp16: seen in the graph itself, between any two of its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from captory_export.half import LARGEST_FP16, narrowed_values

HEADROOM = 2.0  # what a value may still grow with other inputs
HIDDEN = 1e29  # from here on a score only says that a position is hidden; fp16's largest says it as well


def fits_fp16(path: Path, inputs: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the fp32 graph at `path`, of which `inputs` occur, would not overflow."""
    return largest_narrowed(path, inputs) * HEADROOM <= LARGEST_FP16


def largest_narrowed(path: Path, inputs: Mapping[str, NDArray[Any]]) -> float:
    """The largest absolute value, for these inputs, of all that fp16 would hold in the fp32 graph at `path`."""
    model = ir.load(path)
    largest = _largest(model.graph, narrowed_values(model))
    model.graph.outputs.clear()
    model.graph.outputs.append(largest)
    watched = path.with_name("watched.onnx")  # beside the graph, where its weights may lie
    try:
        ir.save(model, watched)
        session = onnxruntime.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
        outputs: Any = session.run(None, dict(inputs))
    finally:
        watched.unlink(missing_ok=True)
    return float(outputs[0])


def _largest(graph: ir.Graph, values: Sequence[ir.Value]) -> ir.Value:
    """One number: the largest of the values' magnitudes below `HIDDEN`."""

    def made(operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        graph.append(node)
        return node.outputs[0]

    hidden, nothing = (made("Constant", value_float=number) for number in (HIDDEN, 0.0))
    peaks = []
    for value in values:
        size = made("Abs", value)
        peaks.append(made("ReduceMax", made("Where", made("Less", size, hidden), size, nothing), keepdims=0))
    largest = made("Max", *peaks)
    largest.type, largest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    return largest
