"""One way to write a torch module as an ONNX graph with named inputs, outputs and dynamic axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from captory_export.lean_modules import lean
from captory_export.optimise import optimise
from captory_export.repository import Port

OPSET = 20
CACHE_OUTPUTS = ["logits", "new_keys", "new_values"]
TOKEN_AXES = {
    "input_ids": {0: "batch", 1: "sequence"},
    "position_ids": {0: "batch", 1: "sequence"},
}
PAST_AXES = {
    "past_mask": {0: "batch", 1: "past"},
    "past_keys": {0: "batch", 3: "past"},
    "past_values": {0: "batch", 3: "past"},
}


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output_names: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
    path: Path,
) -> dict[str, int]:
    """Trace `module` on `inputs`, in the order of its parameters, and write one file with the weights inside.

    The graph is optimised for ONNX Runtime's CPU provider; returns how often each of its passes applied.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = sorted({name for axes in dynamic_axes.values() for name in axes.values()})
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = {name: {axis: dims[dim] for axis, dim in dynamic_axes.get(name, {}).items()} for name in inputs}
    program = torch.onnx.export(
        lean(module.eval()),
        kwargs=dict(inputs),
        input_names=list(inputs),
        output_names=list(output_names),
        dynamic_shapes=shapes,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    rewrites = optimise(program.model)
    ClearMetadataAndDocStringPass()(program.model)  # where in whose files each node came from
    program.save(str(path), external_data=False)
    return rewrites


@torch.no_grad()
def flops_per_row(module: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Count the floating-point operations of multiplications a row of `inputs`, as the checkpoint defines them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        module(**inputs)
    return int(counter.get_total_flops()) // len(next(iter(inputs.values())))


def read_ports(path: Path) -> tuple[list[Port], list[Port]]:
    """Return the inputs and outputs of a graph whose first axis is the batch; dynamic axes are -1."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
    inputs, outputs = (
        [Port(v.name, types[v.type], tuple(d if isinstance(d, int) else -1 for d in v.shape[1:])) for v in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs
