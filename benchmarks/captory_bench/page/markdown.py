"""Figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Figures = dict[str, Any]


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; the first column is text, the others are figures."""
    names = list(header)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *[[str(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine_words(machine: Figures) -> str:
    """On what a table's figures were measured."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = ", ".join(f"{load:g}" for load in machine["load_average"])
    commit = f"; commit {machine['commit']}" if machine.get("commit") else ""
    return (
        f"*{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}, {versions}{commit}; load average at the end {load}.*"
    )
