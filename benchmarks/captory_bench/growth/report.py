"""The figures of `captory bench growth`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table

from captory_bench.growth.measure import Measured
from captory_bench.measuring.checks import check_record
from captory_bench.measuring.tables import agreement_table, machine_line

Points = dict[str, dict[str, Any]]


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values."""
    return {
        "images": _points(measured.images),
        "steps": _points(measured.by_steps),
        "clients": _points(measured.clients),
        "steps_of_the_others": measured.steps,
        "rounds": len(measured.images),
        "checks": check_record(measured.agreement, complete=measured.complete),
    }


def _points(rounds: Sequence[dict[int, float]]) -> Points:
    """Medians and spreads by value, in ascending order."""
    speeds = {value: [one[value] for one in rounds] for value in sorted(rounds[0])}
    return {
        str(value): {"images_per_s": median(found), "spread": [min(found), max(found)]}
        for value, found in speeds.items()
    }


def growth_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    steps = figures["steps_of_the_others"]
    titles = {
        "images": f"photographs of one job, {steps} steps",
        "steps": "steps of an image",
        "clients": f"clients with a connection each, {steps} steps",
    }
    tables = [_table(name, title, figures[name]) for name, title in titles.items()]
    return Group(*tables, agreement_table(figures["checks"]), machine_line(figures["machine"]))


def _table(name: str, title: str, points: Points) -> Table:
    table = Table(name, title=title)
    for heading in ("images/s", "spread", "ms an image"):
        table.add_column(heading, justify="right")
    for value, point in points.items():
        speed, (low, high) = point["images_per_s"], point["spread"]
        table.add_row(value, f"{speed:.2f}", f"{low:.2f} to {high:.2f}", f"{1000 / speed:.1f}")
    return table
