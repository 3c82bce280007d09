"""One way to write a torch module as an ONNX graph with named inputs, outputs and dynamic axes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from captory_export.exportable import Axis, Graph
from captory_export.lean_modules import lean
from captory_export.optimise import optimise
from captory_export.repository import Port

OPSET = 20
CACHE_OUTPUTS = ("logits", "new_keys", "new_values")
TOKEN_AXES = {"input_ids": {1: Axis("sequence")}, "position_ids": {1: Axis("sequence")}}
PAST_AXES = {"past_mask": {1: Axis("past")}, "past_keys": {3: Axis("past")}, "past_values": {3: Axis("past")}}
_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
}


def export_graph(graph: Graph, path: Path, *, for_cpu: bool = True) -> dict[str, int]:
    """Trace the module on its example values, in the order of its parameters, and write it with its weights.

    Weights of more than 1.5 GiB torch puts into a file beside the graph, since protobuf holds no more than 2. Where
    `for_cpu`, the graph is optimised for ONNX Runtime's CPU provider; returns how often each pass applied.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        lean(graph.module.eval()),
        kwargs=dict(graph.inputs),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=_dynamic_shapes(graph),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    rewrites = optimise(program.model) if for_cpu else {}
    ClearMetadataAndDocStringPass()(program.model)  # where in whose files each node came from
    program.save(str(path))
    return rewrites


@torch.no_grad()
def flops_per_row(graph: Graph) -> int:
    """Count the floating-point operations of multiplications a row of the examples, as the checkpoint defines them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        graph.module(**graph.inputs)
    return int(counter.get_total_flops()) // len(next(iter(graph.inputs.values())))


def read_ports(graph: Graph, path: Path) -> tuple[list[Port], list[Port]]:
    """The inputs and outputs of a graph that was written to `path`; dynamic axes are -1."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [_port(value, reshaped=value.name in graph.reshaped) for value in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def _port(value: onnxruntime.NodeArg, *, reshaped: bool) -> Port:
    if reshaped:
        return Port(value.name, _TYPES[value.type], (1,), ())
    dims = tuple(size if isinstance(size, int) else -1 for size in value.shape[1:])
    return Port(value.name, _TYPES[value.type], dims)


def _dynamic_shapes(graph: Graph) -> dict[str, dict[int, object]]:
    batch = torch.export.Dim("batch")
    names = {axis.name for axes in graph.axes.values() for axis in axes.values()}
    dims = {name: torch.export.Dim(name) for name in sorted(names)}

    def size(axis: Axis) -> object:
        return dims[axis.name] if axis.multiple == 1 else axis.multiple * dims[axis.name]

    free = {name: {place: size(axis) for place, axis in graph.axes.get(name, {}).items()} for name in graph.inputs}
    return {name: {0: batch, **axes} for name, axes in free.items()}


def example(value: Tensor, rows: int) -> Tensor:
    """`rows` rows of fresh values like `value`: as spread about the same mean; integers within its range."""
    shape = (rows, *value.shape[1:])
    if not value.is_floating_point():
        return torch.randint(int(value.max()) + 1, shape)
    if value.ndim == 1:  # times
        return torch.rand(shape) * 999
    return torch.randn(shape) * value.std(correction=0) + value.mean()
