"""The figures of `captory bench profile`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.bar import Bar
from rich.console import Group
from rich.table import Table

from captory_bench.measuring.tables import machine_line
from captory_engine.profiles import ROWS, Curve, record

BAR_WIDTH = 40


def summarise(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The figures as plain values."""
    return {"curves": {stage: record(curve) for stage, curve in curves.items()}}


def profile_tables(figures: dict[str, Any]) -> Group:
    """Milliseconds a row by rows a batch, then the throughput as bars."""
    table = Table("graph", *(f"{rows}" for rows in ROWS), "knee", title="milliseconds a row, by rows a batch")
    for stage, curve in figures["curves"].items():
        cells = (f"{curve['ms_per_row'][rows]:.2f}" if rows in curve["ms_per_row"] else "" for rows in ROWS)
        table.add_row(stage, *cells, str(curve["knee"]))
    bars = (_throughput(stage, curve) for stage, curve in figures["curves"].items())
    return Group(table, *bars, machine_line(figures["machine"]))


def _throughput(stage: str, curve: Mapping[str, Any]) -> Table:
    table = Table(
        "rows",
        "rows/s",
        "",
        title=f"{stage}: {curve['model']}, rows/s of {curve['num_lanes']} lanes together",
        min_width=BAR_WIDTH + 24,
    )
    best = min(curve["ms_per_row"].values())
    for rows, ms in curve["ms_per_row"].items():
        table.add_row(str(rows), f"{1000 / ms:.1f}", Bar(1.0, 0, best / ms, width=BAR_WIDTH))
    return table
