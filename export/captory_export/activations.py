"""Which precision a graph's values fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captory_export.exportable import Graph
from captory_export.precision import Precision

LARGEST_FP16 = 65504.0
HEADROOM = 2.0  # what an activation may still grow with other inputs


def precision_of(graph: Graph, suffix: str, wanted: Precision) -> Precision:
    """What a graph is really exported in: see `Precision`."""
    if wanted is Precision.INT8 and suffix != "decoder":
        return Precision.FP32
    if wanted is Precision.FP16 and largest_activation(graph) * HEADROOM > LARGEST_FP16:
        return Precision.FP32
    return wanted


@torch.no_grad()
def largest_activation(graph: Graph) -> float:
    """The largest absolute value that any part of the module gives for the example values."""
    largest = 0.0

    def look(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        for value in output if isinstance(output, tuple | list) else (output,):
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                largest = max(largest, float(value.abs().max()))

    hooks = [part.register_forward_hook(look) for part in graph.module.modules()]
    try:
        graph.module(**graph.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
