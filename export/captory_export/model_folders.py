"""One part of a checkpoint as a Triton model folder: graph, configuration, parity report, manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from captory_engine.errors import BadModel
from captory_export.activations import precision_of
from captory_export.conversions import to_fp16, to_int8
from captory_export.exportable import Graph, Part
from captory_export.graphs import example, export_graph, flops_per_row, read_ports
from captory_export.precision import Precision, faults
from captory_export.repository import to_json, write_model

Array = NDArray[Any]
ROWS = (1, 2, 3, 5, 8, 16)  # of the batches that are compared
MAX_FLOPS = 4e12  # that comparing may take: a large graph is compared in fewer batches


class Example(NamedTuple):
    """One batch, and what the checkpoint's module makes of it."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def export_part(part: Part, folder: Path, precision: Precision) -> dict[str, Any]:
    """Write the model named as the folder; returns its parity report.

    Raises `BadModel` when ONNX Runtime differs from torch by more than the precision's bounds.
    """
    torch.manual_seed(0)
    actual = precision_of(part.graph, part.suffix, precision)
    flops = flops_per_row(part.graph)
    examples = [_example(part.graph, rows) for rows in _rows(flops)]
    path = folder / "1" / "model.onnx"
    rewrites = export_graph(part.graph, path, for_cpu=actual is not Precision.FP16)
    if actual is not Precision.FP32:
        {Precision.FP16: to_fp16, Precision.INT8: to_int8}[actual](path)
    report = {"precision": actual.value, **compare(examples, path), "rewrites": rewrites, "flops_per_row": flops}
    if broken := faults(report, actual):
        raise BadModel("PARITY", f"{folder.name} is not what the checkpoint is: {'; '.join(broken)}.")
    inputs, outputs = read_ports(part.graph, path)
    write_model(folder, path, inputs, outputs, files={**part.files, "parity.json": to_json(report)})
    return report


def compare(examples: list[Example], path: Path) -> dict[str, Any]:
    """How far a graph is from its module; `difference` is the largest over the largest value there is, or 1."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted, got = [], []
    for batch in examples:
        found = session.run(list(batch.outputs), dict(batch.inputs))
        wanted += [np.ravel(value) for value in batch.outputs.values()]
        got += [np.ravel(value) for value in found]
    one, other = np.concatenate(wanted).astype(np.float64), np.concatenate(got).astype(np.float64)
    differences = np.abs(one - other)
    return {
        "batch_sizes": [len(next(iter(batch.inputs.values()))) for batch in examples],
        "max_abs_difference": float(differences.max()),
        "mean_abs_difference": float(differences.mean()),
        "difference": float(differences.max() / max(1.0, np.abs(one).max())),
        "cosine": float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-30)),
    }


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
    return Example({name: value.numpy() for name, value in feed.items()}, {name: out.numpy() for name, out in named})
