"""The figures of `captory bench serve` for people."""

from __future__ import annotations

from typing import Any

from rich.bar import Bar
from rich.console import Group
from rich.table import Table

from captory_bench.measuring.tables import agreement_table, machine_line, targets_table
from captory_bench.serve.report import RATIOS

BAR_WIDTH = 40


def comparison_tables(figures: dict[str, Any]) -> Group:
    """Arms, ratios, the tail, the batches that were observed, and the machine."""
    return Group(
        _definitions(figures),
        _arms(figures),
        _ratios(figures),
        targets_table(figures["targets"]),
        _latency(figures),
        _histogram(figures),
        agreement_table(figures["checks"]),
        machine_line(figures["machine"]),
    )


def _definitions(figures: dict[str, Any]) -> Table:
    table = Table("arm", "is", title="arms", show_lines=True)
    for name, arm in figures["arms"].items():
        work = f"stages: {arm['stages']}\nsteps {arm['steps']}, guidance {arm['guidance']}"
        table.add_row(name.replace("_", " "), f"{work}\nbatch: {arm['batch']}\ntransport: {arm['transport']}")
    return table


def _arms(figures: dict[str, Any]) -> Table:
    title = f"{figures['images']} images an arm and round, median of {figures['rounds']} rounds"
    table = Table("arm", title=title)
    for name in ("images/s", "lowest", "highest", "CPU s/image", "mean rows", "useful rows"):
        table.add_column(name, justify="right")
    for name, arm in figures["arms"].items():
        rounds = arm["images_per_s_by_round"]
        speeds = (f"{value:.2f}" for value in (arm["images_per_s"], min(rounds), max(rounds)))
        rows = f"{arm['mean_rows']:.1f}", f"{arm['row_efficiency']:.0%}"
        table.add_row(name.replace("_", " "), *speeds, f"{arm['cpu_s_per_image']:.3f}", *rows)
    return table


def _ratios(figures: dict[str, Any]) -> Table:
    title = "ratios of images/s, same items and round"
    table = Table("ratio", "median", "spread", "by CPU time", title=title)
    for name, (above, below) in RATIOS.items():
        low, high = figures["spread"][name]
        words, by_cpu = f"{above} / {below}".replace("_", " "), figures["by_cpu_time"][name]
        table.add_row(words, f"{figures[name]:.2f}", f"{low:.2f} to {high:.2f}", f"{by_cpu:.2f}" if by_cpu else "")
    return table


def _latency(figures: dict[str, Any]) -> Table:
    latency = figures["latency"]
    title = f"seconds from the intended send, Poisson arrivals at {latency['arrivals_per_s']:.2f} images/s"
    table = Table("arm", "p50", "p95", "p50 of 8 steps", "p95 of 8 steps", title=title)
    for name, tail in latency.items():
        if isinstance(tail, dict):
            cells = (f"{tail[key]:.2f}" for key in ("p50_s", "p95_s", "short_p50_s", "short_p95_s"))
            table.add_row(name.replace("_", " "), *cells)
    table.caption = (
        "served: sent as interactive work; request-level: when the device is free, the image that waited longest "
        "and its equals in steps and guidance go at once"
    )
    return table


def _histogram(figures: dict[str, Any]) -> Table:
    table = Table("rows", "batches", "share", title="denoiser batches of the served arm of mixed steps and guidance")
    observed = figures["batch_rows"]
    most = max(observed.values())
    for rows, num in observed.items():
        table.add_row(rows, str(num), Bar(most, 0, num, width=BAR_WIDTH))
    return table
