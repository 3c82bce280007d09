"""The figures of `captory bench sharing`, held against their targets."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from captory_bench.measuring.arrivals import percentiles
from captory_bench.measuring.checks import check_record, counted
from captory_bench.measuring.stats import Stats, total
from captory_bench.measuring.tables import agreement_table, machine_line, targets_table
from captory_bench.measuring.targets import Target, at_least, at_most
from captory_bench.sharing.classes import LOAD, Shared
from captory_bench.sharing.coscheduling import PAINTER
from captory_bench.sharing.measure import Measured


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values."""
    windows = [job.window for job in measured.jobs]
    goals, checks = _goals(measured, windows), check_record(measured.agreement, complete=measured.complete)
    return {
        **{goal.name: goal.value for goal in goals},
        "targets": counted(goals, checks),
        "bulk_images_per_s": [job.outcome.images_per_s for job in measured.jobs],
        "window_s": [window.uptime_s for window in windows],
        "stages": {name: _stage(windows, name) for name in windows[0].stages},
        "classes": {
            "load": LOAD,
            "rounds": [_classes(shared) for shared in measured.shared],
            "batch_rows": _batch_rows(measured.shared),
        },
        "denoiser_batches_around_one_step": _spread(measured.probes),
        "server_options": measured.options[2:],  # the first two name the repository's folder
        "lanes": measured.lanes,
        "row_caps": measured.caps,
        "checks": checks,
    }


def _goals(measured: Measured, windows: Sequence[Stats]) -> list[Target]:
    mixed = [outcome.denoiser for outcome in measured.mixed]
    rounds = [_classes(shared) for shared in measured.shared]
    return [
        at_least("device_busy_share", [window.busy_share for window in windows], 0.97),
        at_least("painter_share_of_busy_time", [window.share(PAINTER) for window in windows], 0.92),
        at_least("denoiser_batch_fill", [window.fill("denoise") for window in windows], 0.90),
        at_least("row_efficiency_mixed", [rows.useful_rows / rows.computed_rows for rows in mixed], 0.97),
        at_most("interactive_p95_over_solo", [one["p95_over_solo"] for one in rounds], 3.0),
        at_least("bulk_rate_kept", [one["bulk_kept"] for one in rounds], 0.85),
    ]


def _classes(shared: Shared) -> dict[str, float]:
    """One round's figures."""
    alone, beside = (percentiles(outcome.latencies.values()) for outcome in (shared.alone, shared.beside))
    return {
        "solo_p50_s": alone.p50_s,
        "solo_p95_s": alone.p95_s,
        "shared_p50_s": beside.p50_s,
        "shared_p95_s": beside.p95_s,
        "p95_over_solo": beside.p95_s / alone.p95_s,
        "bulk_alone_per_s": shared.bulk_alone_per_s,
        "bulk_shared_per_s": shared.bulk_beside_per_s,
        "bulk_kept": shared.bulk_beside_per_s / shared.bulk_alone_per_s if shared.bulk_alone_per_s else 0.0,
    }


def _batch_rows(rounds: Sequence[Shared]) -> dict[str, int]:
    """How many denoiser batches had so many rows while both classes were there: the row caps as they were applied."""
    rows = total(shared.beside.denoiser for shared in rounds).batch_rows
    return {str(size): rows[size] for size in sorted(rows)}


def _stage(windows: Sequence[Stats], name: str) -> dict[str, float]:
    """One stage over all windows: its share of the busy time, rows a batch, milliseconds of one lane a row."""
    counts = total(window.stages[name] for window in windows)
    seconds = sum(one.seconds for window in windows for one in window.stages.values())
    return {
        "share": counts.seconds / seconds,
        "mean_rows": counts.computed_rows / max(1, counts.batches),
        "ms_per_row": 1000 * counts.seconds / max(1, counts.computed_rows),
        "row_cap": windows[-1].caps[name],
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"median": median(values), "p95": float(np.percentile(values, 95)), "max": max(values)}


def sharing_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    probes = figures["denoiser_batches_around_one_step"]
    return Group(
        targets_table(figures["targets"]),
        _stages_table(figures),
        _classes_table(figures),
        f"an interactive item of one step among bulk: {probes['median']:g} other denoiser batches end between its "
        f"sending and its image (median; at most {probes['max']:g}), with {figures['lanes']} lanes",
        agreement_table(figures["checks"]),
        machine_line(figures["machine"]),
    )


def _stages_table(figures: dict[str, Any]) -> Table:
    table = Table("stage", title="the device during bulk jobs, without ramp-up and tail")
    for name in ("share of busy time", "mean rows", "row cap", "lane ms a row"):
        table.add_column(name, justify="right")
    for name, stage in figures["stages"].items():
        cells = (
            f"{stage['share']:.1%}",
            f"{stage['mean_rows']:.1f}",
            f"{stage['row_cap']:g}",
            f"{stage['ms_per_row']:.2f}",
        )
        table.add_row(name, *cells)
    return table


def _classes_table(figures: dict[str, Any]) -> Table:
    title = f"interactive items at {figures['classes']['load']:.0%} of the bulk rate, alone and beside a bulk job"
    table = Table("round", title=title)
    for name in ("p50 alone", "p95 alone", "p50 shared", "p95 shared", "bulk alone", "bulk shared"):
        table.add_column(name, justify="right")
    keys = "solo_p50_s", "solo_p95_s", "shared_p50_s", "shared_p95_s", "bulk_alone_per_s", "bulk_shared_per_s"
    for number, one in enumerate(figures["classes"]["rounds"], start=1):
        table.add_row(str(number), *(f"{one[key]:.2f}" for key in keys))
    observed = ", ".join(f"{rows} rows {num} x" for rows, num in figures["classes"]["batch_rows"].items())
    table.caption = (
        f"seconds and images/s; the denoiser's row cap is {figures['row_caps']['denoise']}; "
        f"its batches while both were there: {observed}"
    )
    return table
