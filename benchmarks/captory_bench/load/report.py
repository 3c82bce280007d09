"""The figures of `captory bench load`, held against their targets."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from captory_bench.load.client import Load
from captory_bench.load.loadgen import PACKAGE, Verdict
from captory_bench.load.measure import MULTIPLES, Measured, Settings
from captory_bench.measuring.checks import check_record, counted
from captory_bench.measuring.machine import package_version
from captory_bench.measuring.tables import agreement_table, machine_line, targets_table
from captory_bench.measuring.targets import Target, at_least, at_most

MIN_GOODPUT = 0.9  # of the peak
MAX_REFUSAL_MS = 50.0
OWN_CLIENT = f"{PACKAGE} is not installed: the own open-loop client stood in for it"


def summarise(settings: Settings, measured: Measured) -> dict[str, Any]:
    """The figures as plain values."""
    failed = sum(load.num_failed for each in measured.goodput for load in each.values())
    checks = check_record(measured.agreement, complete=failed == 0)
    return {
        "loadgen": f"{PACKAGE} {package_version(PACKAGE)}" if measured.with_loadgen else OWN_CLIENT,
        "offline": _verdict(measured.offline[-1]),
        "server": _verdict(measured.server) if measured.server else None,
        "searched": [_verdict(one) for one in measured.searched],
        "bound_s": settings.bound_s,
        "seconds": settings.final_seconds,
        "steps": measured.steps,
        "max_items": measured.max_items,
        "goodput": {
            str(multiple): [_load(each[multiple], settings.bound_s) for each in measured.goodput]
            for multiple in MULTIPLES
            if measured.goodput
        },
        "targets": counted(_goals(settings, measured), checks),
        "checks": checks,
    }


def _goals(settings: Settings, measured: Measured) -> list[Target]:
    """Goodput over the peak, which is the highest rate that holds the bound, and how soon a refusal is told.

    Goodput is 0 where no rate holds it.
    """
    peak = measured.server.rate_per_s if measured.server else 0.0
    shares = {m: [each[m].goodput_per_s(settings.bound_s) / peak for each in measured.goodput] for m in MULTIPLES}
    goals = [
        at_least(f"goodput_over_peak_at_{multiple}x", shares[multiple] or [0.0], MIN_GOODPUT) for multiple in MULTIPLES
    ]
    refusals = [_refusal_ms(each) for each in measured.goodput]
    told = [value for value in refusals if value is not None]
    return [*goals, at_most("refusal_p99_ms", told, MAX_REFUSAL_MS, "ms")] if told else goals


def _refusal_ms(loads: dict[int, Load]) -> float | None:
    """The p99 of all refusals of a round; None where nothing was refused."""
    refusals = [seconds for load in loads.values() for seconds in load.refusals_s]
    return 1000 * float(np.percentile(refusals, 99)) if refusals else None


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "rate_per_s": verdict.rate_per_s,
        "samples_per_s": verdict.samples_per_s,
        "p99_s": verdict.p99_s,
        "failed": verdict.num_failed,
        "loadgen_says": verdict.result,
    }


def _load(load: Load, bound_s: float) -> dict[str, Any]:
    return {
        "sent": len(load.answers),
        "seconds": load.seconds,
        "goodput_per_s": load.goodput_per_s(bound_s),
        "late": load.num_late(bound_s),
        "refused": len(load.refusals_s),
        "failed": load.num_failed,
        "p99_s": load.p99_s,
        "refusal_max_ms": 1000 * max(load.refusals_s, default=0.0),
    }


def load_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    parts = [_scenarios(figures), _goodput(figures)] if figures["goodput"] else [_scenarios(figures)]
    tables = [targets_table(figures["targets"])] if figures["targets"] else []
    return Group(*parts, *tables, agreement_table(figures["checks"]), machine_line(figures["machine"]))


def _scenarios(figures: dict[str, Any]) -> Table:
    title = f"{figures['loadgen']}, {figures['steps']} steps, p99 within {figures['bound_s']:g} s"
    table = Table("scenario", title=title)
    for name in ("asked/s", "images/s", "p99 s", "failed", "LoadGen says"):
        table.add_column(name, justify="right")
    named = [("offline", figures["offline"]), *(("searched", one) for one in figures["searched"])]
    for name, one in [*named, *([("server", figures["server"])] if figures["server"] else [])]:
        asked = f"{one['rate_per_s']:.2f}" if name != "offline" else ""
        table.add_row(
            name, asked, f"{one['samples_per_s']:.2f}", f"{one['p99_s']:.2f}", str(one["failed"]), one["loadgen_says"]
        )
    if not figures["server"]:
        table.caption = "no rate that was tried holds the bound"
    return table


def _goodput(figures: dict[str, Any]) -> Table:
    title = f"images/s within {figures['bound_s']:g} s, of a server that holds at most {figures['max_items']} items"
    table = Table("offered", title=title)
    for name in ("goodput/s", "sent", "refused", "late", "failed", "p99 s", "slowest refusal ms"):
        table.add_column(name, justify="right")
    for multiple, rounds in figures["goodput"].items():
        middle = {key: median(one[key] for one in rounds) for key in rounds[0]}
        cells = (f"{middle[key]:g}" for key in ("sent", "refused", "late", "failed"))
        tail = f"{middle['p99_s']:.2f}", f"{middle['refusal_max_ms']:.1f}"
        table.add_row(f"{multiple} x", f"{middle['goodput_per_s']:.2f}", *cells, *tail)
    table.caption = "medians of the rounds; from the intended send; a refusal is told at once and not tried again"
    return table
