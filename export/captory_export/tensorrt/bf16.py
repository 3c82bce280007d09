"""A graph of fp16 in bf16: the range of fp32 in as many bits, where fp16 would overflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captory_export.conversions import to_fp16


def to_bf16(path: Path) -> None:
    """In place: what `to_fp16` makes fp16 becomes bf16; inputs and outputs stay fp32."""
    import onnx

    to_fp16(path)
    data = path.with_name(f"{path.name}.data")
    model = onnx.load(path)
    _retype(model.graph)
    beside = data.is_file()
    data.unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=beside, location=data.name if beside else None)


def _retype(graph: Any) -> None:
    from onnx import TensorProto

    half, wide = TensorProto.FLOAT16, TensorProto.BFLOAT16
    for tensor in _tensors(graph):
        if tensor.data_type == half:
            tensor.CopyFrom(_as_bf16(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = wide
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = wide


def _tensors(graph: Any) -> Iterable[Any]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _as_bf16(tensor: Any) -> Any:
    """Rounded to the nearest, as NumPy's extension does."""
    import ml_dtypes
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), tensor.name)
