"""One part of a checkpoint as a Triton model folder: graph, configuration, parity report, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from captory_engine.errors import BadModel
from captory_export.activations import fits_fp16
from captory_export.conversions import to_fp16, to_int8
from captory_export.exportable import Graph, Part
from captory_export.graphs import example, export_graph, flops_per_row, read_ports
from captory_export.precision import Precision, faults
from captory_export.repository import to_json, write_model

Array = NDArray[Any]
ROWS = (1, 2, 3, 5, 8, 16)  # of the batches that are compared
MAX_FLOPS = 4e12  # that comparing may take: a large graph is compared in fewer batches
TINY = 1e-12  # of a product of norms: two outputs of nothing are the same


class Example(NamedTuple):
    """One batch, and what the checkpoint's module makes of it."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def export_part(part: Part, folder: Path, precision: Precision, *, for_cpu: bool = True) -> dict[str, Any]:
    """Write the model named as the folder; returns its parity report.

    Raises `BadModel` when ONNX Runtime differs from torch by more than the precision's bounds.
    """
    torch.manual_seed(0)
    flops = flops_per_row(part.graph)
    examples = [_example(part.graph, rows) for rows in _rows(flops)]
    path = folder / "1" / "model.onnx"
    rewrites = export_graph(part.graph, path, for_cpu=for_cpu and precision is not Precision.FP16)
    actual = _fitting(precision, part, path)
    if actual is not Precision.FP32:
        {Precision.FP16: to_fp16, Precision.INT8: to_int8}[actual](path)
    compared = compare_outputs(examples, path)
    report = {"precision": actual.value, **compared, "rewrites": rewrites, "flops_per_row": flops}
    broken = [f"{fault} in {name}" for name, one in compared["outputs"].items() for fault in faults(one, actual)]
    if broken:
        raise BadModel("PARITY", f"{folder.name} is not what the checkpoint is: {'; '.join(broken)}.")
    inputs, outputs = read_ports(part.graph, path)
    write_model(folder, inputs, outputs, files={**part.files, "parity.json": to_json(report)})
    return report


def compare_outputs(examples: Sequence[Example], path: Path) -> dict[str, Any]:
    """How far a graph is from its module: by output, the worst of all, and the output that is least alike."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = list(examples[0].outputs)
    found = [session.run(names, dict(batch.inputs)) for batch in examples]
    wanted = [[batch.outputs[name] for name in names] for batch in examples]
    pairs = zip(names, zip(*wanted, strict=True), zip(*found, strict=True), strict=True)
    outputs = {name: _figures(_joined(one), _joined(other)) for name, one, other in pairs}

    def worst(figure: str) -> float:
        values = [one[figure] for one in outputs.values()]
        return min(values) if figure == "cosine" else max(values)

    return {
        "batch_sizes": [len(next(iter(batch.inputs.values()))) for batch in examples],
        **{figure: worst(figure) for figure in outputs[names[0]]},
        "worst_output": min(names, key=lambda name: outputs[name]["cosine"]),
        "outputs": outputs,
    }


def _figures(wanted: Array, got: Array) -> dict[str, float]:
    """How far two vectors are apart; `difference` is the largest over the largest value there is, or 1."""
    differences, largest = np.abs(wanted - got), np.abs(wanted).max()
    norms = float(np.linalg.norm(wanted) * np.linalg.norm(got))
    return {
        "max_abs_difference": float(differences.max()),
        "mean_abs_difference": float(differences.mean()),
        "difference": float(differences.max() / max(1.0, largest)),
        "cosine": (float(wanted @ got) + TINY) / (norms + TINY),
    }


def _joined(batches: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(batch) for batch in batches]).astype(np.float64)


def _fitting(wanted: Precision, part: Part, path: Path) -> Precision:
    """What the fp32 graph at `path` is to be kept in: see `Precision`."""
    if wanted is Precision.INT8 and part.suffix != "decoder":
        return Precision.FP32
    if wanted is Precision.FP16 and not fits_fp16(path, _arrays(part.graph.inputs)):
        return Precision.FP32
    return wanted


def _rows(flops: int) -> list[int]:
    """Batches within `MAX_FLOPS`, the smallest always among them."""
    affordable = [rows for index, rows in enumerate(ROWS) if flops * sum(ROWS[: index + 1]) <= MAX_FLOPS]
    return affordable or [ROWS[0]]


@torch.no_grad()
def _example(graph: Graph, rows: int) -> Example:
    feed = {name: example(value, rows) for name, value in graph.inputs.items()}
    results = graph.module(**feed)
    outputs = results if isinstance(results, tuple) else (results,)
    named = zip(graph.outputs, outputs, strict=True)
    return Example(_arrays(feed), _arrays(dict(named)))


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in tensors.items()}
