"""`captory bench kernels`: operations are counted, outputs checked, and a wrong graph gets no good word."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.kernels import matmul_peak
from captory_bench.kernels import measure as kernels

STAGES = ["vision", "caption", "write", "text", "denoise", "vae"]


def node(op: str, inputs: list[list[int]], output: list[int]) -> dict[str, Any]:
    return {
        "op_name": op,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }


@pytest.mark.parametrize(
    ("ran", "flops"),
    [
        (node("MatMul", [[2, 5, 8], [8, 3]], [2, 5, 3]), 2 * 2 * 5 * 8 * 3),
        (node("MatMul", [[2, 5, 8]], [2, 5, 3]), 2 * 2 * 5 * 8 * 3),
        (node("FusedMatMul", [[4, 1, 8], [4, 6, 8]], [4, 1, 6]), 2 * 4 * 8 * 6),
        (node("Gemm", [[7, 5]], [7, 3]), 2 * 7 * 5 * 3),
        (node("Gemm", [[5, 7]], [7, 3]), 2 * 7 * 5 * 3),
        (node("Conv", [[1, 8, 4, 4], [16, 8, 3, 3]], [1, 16, 4, 4]), 2 * 16 * 16 * 8 * 9),
        (node("Softmax", [[4, 4]], [4, 4]), 0),
    ],
    ids=["matmul", "packed", "transposed", "gemm", "gemm of a transposed", "convolution", "other"],
)
def test_operations_of_a_node(ran: dict[str, Any], flops: int) -> None:
    assert kernels.flops_of(ran) == flops


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "matmul_peak", lambda _: 100.0)
    monkeypatch.setattr(kernels, "MIN_SECONDS", 0.0)


COMMAND = ["kernels", "--rows", "4", "--rounds", "1", "--scenes", "0"]


@pytest.mark.usefixtures("quick")
def test_every_graph_is_measured_against_the_peak() -> None:
    told = CliRunner().invoke(bench, [*COMMAND, "--json"])
    assert told.exit_code == 0
    figures = json.loads(told.stdout)
    assert list(figures["graphs"]) == STAGES
    assert figures["checks"]["ok"]
    denoise = figures["graphs"]["denoise"]
    assert denoise["flops_per_row"]["run"] < 0.75 * denoise["flops_per_row"]["defined"]
    for graph in figures["graphs"].values():
        one = graph["lanes"]["1"]
        assert one["share_of_peak"] == pytest.approx(graph["flops_per_row"]["run"] / one["ms_per_row"] / 1e8, rel=1e-3)
    assert CliRunner().invoke(bench, COMMAND).exit_code == 0


@pytest.mark.usefixtures("quick")
def test_outputs_that_differ_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TOLERANCE", -1.0)
    assert CliRunner().invoke(bench, [*COMMAND, "--json"]).exit_code == 1


def test_the_peak_is_a_rate_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_peak, "SIZES", (16, 32))
    assert all(rate > 0 for rate in matmul_peak.measure().values())
