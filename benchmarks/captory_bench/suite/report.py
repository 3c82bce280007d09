"""All targets of all benchmarks in one table, and as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from captory_bench.measuring.tables import targets_table
from captory_bench.suite.run import Ran

SUMMARY = "bench-all.json"


def summarise(ran: Sequence[Ran], *, full: bool) -> dict[str, Any]:
    """The figures as plain values. A benchmark gives no targets of work that was wrong."""
    return {
        "full": full,
        "seconds": sum(one.seconds for one in ran),
        "parts": {one.name: {"seconds": one.seconds, "exit_code": one.exit_code, "words": one.words} for one in ran},
        "targets": [
            {**target, "name": f"{one.name}: {target['name']}"}
            for one in ran
            if one.figures
            for target in one.figures.get("targets", [])
        ],
    }


def write(figures: dict[str, Any], out: Path) -> None:
    """Keep the summary beside what it sums up."""
    (out / SUMMARY).write_text(json.dumps(figures, indent=2) + "\n")


def summary_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    parts = Table("benchmark", "how it went", title=f"{figures['seconds'] / 60:.1f} minutes in all")
    parts.add_column("seconds", justify="right")
    for name, part in figures["parts"].items():
        parts.add_row(name, part["words"], f"{part['seconds']:.0f}")
    return Group(targets_table(figures["targets"]), parts) if figures["targets"] else Group(parts)
