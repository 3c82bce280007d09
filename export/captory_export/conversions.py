"""Graphs of fp32 in other precisions, in place; their inputs and outputs stay fp32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

BLOCK = 32  # weights that share a scale
ANGLES = ("Sin", "Cos")
NORMS = ("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "LayerNormalization", "InstanceNormalization")
HALF = 10  # TensorProto.FLOAT16
FLOAT = 1  # TensorProto.FLOAT


def to_fp16(path: Path) -> None:
    """fp16, except in norms, in softmax, and in what leads to an angle, as times and positions do."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    kept = _before_angles(onnx.load(path, load_external_data=False).graph)
    model = convert_float_to_float16(
        str(path), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *NORMS, "Softmax"], node_block_list=kept
    )
    _undo_roundings(model.graph)
    _save(model, path)


def to_int8(path: Path) -> None:
    """The constant matrices of multiplications in int8 (`MatMulNBits`), a scale for every 32 weights."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=8)
    quantiser = MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantiser.process()
    quantised: Any = quantiser.model  # it starts as a model and ends as a wrapper of one
    _save(quantised.model, path)


def _before_angles(graph: Any) -> list[str]:
    """The names of all nodes that a sine or cosine is computed from, and theirs."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type in ANGLES]
    kept: dict[str, Any] = {}
    while waiting:
        node = waiting.pop()
        if node.name not in kept:
            kept[node.name] = node
            waiting += [makers[name] for name in node.input if name in makers]
    return list(kept)


def _undo_roundings(graph: Any) -> None:
    """An input that was rounded on its way in, and widened again for a node that stays wide, goes there as it is."""
    inputs = {value.name for value in graph.input}
    rounded = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in inputs and _target(node) == HALF
    }
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in rounded and _target(node) == FLOAT:
            node.input[0] = rounded[node.input[0]]


def _target(cast: Any) -> int:
    return next(int(attribute.i) for attribute in cast.attribute if attribute.name == "to")


def _save(model: Any, path: Path) -> None:
    """In place of what was there, with the weights beside the graph if they were."""
    import onnx

    data = path.with_name(f"{path.name}.data")
    beside = data.is_file()
    data.unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=beside, location=data.name if beside else None)
