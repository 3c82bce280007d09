"""The figures of `captory bench kernels` for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from captory_bench.measuring.tables import machine_line


def kernel_tables(figures: dict[str, Any]) -> Group:
    """Rates against the peak, where the time goes, int8 beside fp32, and the machine."""
    return Group(_rates(figures), _ops(figures), _int8(figures["int8"]), machine_line(figures["machine"]))


def _rates(figures: dict[str, Any]) -> Table:
    peak = figures["matmul_peak_gflops"]
    title = f"batches of {figures['rows']} rows; matrix multiplication reaches {peak['one_thread']:.0f} GFLOP/s"
    table = Table("graph", title=f"{title} on one thread, {peak['all_cpus']:.0f} on {peak['cpus']}")
    for name in ("lanes", "MFLOP a row defined", "run", "ms a row", "GFLOP/s", "of the peak", "of the definition"):
        table.add_column(name, justify="right")
    for stage, graph in figures["graphs"].items():
        flops = graph["flops_per_row"]
        for lanes, found in graph["lanes"].items():
            counted = [f"{count / 1e6:.1f}" if count else "" for count in (flops["defined"], flops["run"])]
            defined = f"{found['defined_gflops']:.0f}" if found["defined_gflops"] else ""
            rates = f"{found['ms_per_row']:.3f}", f"{found['gflops']:.0f}", f"{found['share_of_peak']:.0%}", defined
            table.add_row(stage, lanes, *counted, *rates)
    checks = figures["checks"]
    words = "agree with" if checks["ok"] else "DO NOT AGREE WITH"
    table.caption = f"outputs {words} the graphs run without ONNX Runtime's optimisations ({checks['tolerance']:g})"
    return table


def _ops(figures: dict[str, Any]) -> Table:
    table = Table("graph", "most time in", title="kinds of nodes, by their share of a graph's time")
    for stage, graph in figures["graphs"].items():
        words = (f"{op['name']} {op['share']:.0%} ({op['num_nodes']})" for op in graph["ops"])
        table.add_row(stage, ", ".join(words))
    return table


def _int8(found: dict[str, Any]) -> Table:
    table = Table("graph", "how", title="int8 beside fp32")
    for name in ("time", "same texts", "attributes right", "in fp32"):
        table.add_column(name, justify="right")
    for stage, one in found.get("graphs", {}).items():
        rights = f"{one['right']['int8']:.1%}", f"{one['right']['fp32']:.1%}"
        table.add_row(stage, one["how"], f"{one['time_over_fp32']:.2f} x", f"{one['same_texts']:.1%}", *rights)
    if "missing" in found:
        table.caption = f"not measured: {found['missing']}"
    return table
