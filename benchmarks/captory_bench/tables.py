"""The figures for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.bar import Bar
from rich.console import Group
from rich.table import Table

from captory_bench.report import RATIOS
from captory_engine.profiles import ROWS, Curve

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


def targets_table(targets: Sequence[dict[str, Any]]) -> Table:
    """What was aimed at and what came out; `targets` are as `Target.record` gives them."""
    table = Table("figure", title="targets")
    for name in ("median", "spread", "target", ""):
        table.add_column(name, justify="right")
    for one in targets:
        spread = f"{one['low']:.3g} to {one['high']:.3g}"
        bound = f"{'at least' if one['at_least'] else 'at most'} {one['bound']:g} {one['unit']}".rstrip()
        words = one["name"].replace("_", " ")
        table.add_row(words, f"{one['value']:.3g}", spread, bound, "met" if one["met"] else "MISSED")
    return table


def profile_table(curves: Mapping[str, Curve], machine: dict[str, Any]) -> Group:
    """Milliseconds a row by rows a batch, then the throughput as bars."""
    table = Table("graph", *(f"{rows}" for rows in ROWS), "knee", title="milliseconds a row, by rows a batch")
    for stage, curve in curves.items():
        cells = (f"{curve.ms_per_row[rows]:.2f}" if rows in curve.ms_per_row else "" for rows in ROWS)
        table.add_row(stage, *cells, str(curve.knee))
    return Group(table, *(_throughput(stage, curve) for stage, curve in curves.items()), machine_line(machine))


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


def _throughput(stage: str, curve: Curve) -> Table:
    table = Table(
        "rows",
        "rows/s",
        "",
        title=f"{stage}: {curve.model}, rows/s of {curve.num_lanes} lanes together",
        min_width=BAR_WIDTH + 24,
    )
    best = min(curve.ms_per_row.values())
    for rows, ms in curve.ms_per_row.items():
        table.add_row(str(rows), f"{1000 / ms:.1f}", Bar(1.0, 0, best / ms, width=BAR_WIDTH))
    return table


def agreement_table(checks: dict[str, Any]) -> Table:
    """How far images that were timed are from those of a plain loop; `checks` is as `check_record` gives it."""
    table = Table("arms", "images", "other prompts", "worst mean difference", "largest", title="same images?")
    for name, found in checks["agreement"].items():
        levels = f"{found['worst_mean_difference']:.3f}", str(found["max_difference"])
        table.add_row(name.replace("_", " "), str(found["num_compared"]), str(found["num_other_prompts"]), *levels)
    table.caption = f"{'agree' if checks['ok'] else 'DO NOT AGREE'}; in grey levels of 255"
    return table


def machine_line(machine: dict[str, Any]) -> str:
    """The machine, the commit and the load, in words; older figures and installed packages have no commit."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = ", ".join(f"{load:g}" for load in machine["load_average"])
    noise = "; more work than CPUs: times are noisy" if machine["load_average"][1] > 2 * machine["cpus"] else ""
    commit = f"; commit {machine['commit']}" if machine.get("commit") else ""
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['threads']} threads, {machine['memory_gib']} GiB; "
        f"{machine['system']}; Python {machine['python']}, {versions}{commit}; load average at the end {load}{noise}"
    )
