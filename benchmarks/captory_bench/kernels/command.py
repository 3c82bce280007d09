"""`captory bench kernels`."""

from __future__ import annotations

from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark(without=("threads", "backend"))
def kernels(
    subject: Subject,
    rows: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 5,
    scenes: Annotated[int, typer.Option(min=0, help="Scenes to caption in int8 and fp32; 0: no int8.")] = 512,
) -> Result:
    """Measure each graph's GFLOP/s against the machine's matrix multiplication, and int8 against fp32.

    Exit 1 when a graph's outputs are not those of the same graph without ONNX Runtime's optimisations.
    """
    from captory_bench.kernels.int8 import compare
    from captory_bench.kernels.measure import Settings, measure
    from captory_bench.kernels.report import kernel_tables

    figures = measure(Settings(subject.repository, subject.family, rows, rounds), say)
    sizes = {"num_scenes": scenes, "num_rows": rows, "num_rounds": rounds}
    missing = {"missing": "no scenes asked for"}
    figures["int8"] = compare(subject.repository, subject.family, **sizes) if scenes else missing
    return Result(figures, kernel_tables)
