"""The figures of `captory bench peers` for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from captory_bench.measuring.tables import agreement_table, machine_line, targets_table
from captory_bench.peers.contenders import CAPTORY


def peer_tables(figures: dict[str, Any]) -> Group:
    """Ratios, targets, settings, and what could not be measured."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    return Group(
        _ratios(figures),
        targets_table(figures["targets"]),
        _settings(figures),
        *(f"{name} was not measured: {reason}" for name, reason in figures["not_measured"].items()),
        agreement_table(figures["checks"]),
        f"{machine_line(figures['machine'])}; {versions}",
    )


def _ratios(figures: dict[str, Any]) -> Table:
    title = f"images/s, {figures['images']} images and {figures['steps']} steps uniform, median of {figures['rounds']}"
    table = Table("peer", "work", title=title)
    for name in ("captory", "peer", "ratio", "spread", "CPU s/image", "peer's", "peer's batch"):
        table.add_column(name, justify="right")
    for name, works in figures["peers"].items():
        for work, found in works.items():
            speeds = (f"{found[who]['images_per_s']:.2f}" for who in (CAPTORY, "peer"))
            low, high = found["spread"]
            cpu = (f"{one:.3f}" if (one := found[who].get("cpu_s_per_image")) else "" for who in (CAPTORY, "peer"))
            batch = f"{found['peer']['mean_batch']:.1f}" if "mean_batch" in found["peer"] else ""
            table.add_row(name, work, *speeds, f"{found['ratio']:.2f}", f"{low:.2f} to {high:.2f}", *cpu, batch)
    table.caption = (
        "uniform: photographs, captioned, prompted and painted, all at once; rewritten: the same, the captions "
        "rewritten by the writer; mixed: prompts of 8 to 40 steps, all at once; "
        f"capacity: the highest Poisson rate of {figures['arrivals']} mixed prompts whose p95 stays within "
        f"{figures['p95_bound_s']:.2f} s. Each rate is of its own number of images: slow peers paint fewer. "
        "A peer's batch is the mean of the requests that it painted together, at capacity of the rates that held"
    )
    return table


def _settings(figures: dict[str, Any]) -> Table:
    table = Table("contender", "settings", title="settings", show_lines=True)
    for name, words in figures["settings"].items():
        table.add_row(name, words)
    return table
