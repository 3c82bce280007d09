"""The figures of `captory bench guidance`."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table

from captory_bench.guidance.measure import CONSTANT, Interval, Measured, name_of
from captory_bench.measuring.checks import check_record
from captory_bench.measuring.stats import total
from captory_bench.measuring.tables import agreement_table, machine_line
from captory_training.evaluation_report import wilson


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values."""
    num = len(measured.rounds[0][CONSTANT].images)
    return {
        "intervals": {name_of(interval): _figures(measured, interval) for interval in measured.rounds[0]},
        "constant": name_of(CONSTANT),
        "steps": measured.steps,
        "guidance_scale": measured.guidance_scale,
        "images": num,
        "rounds": len(measured.rounds),
        "checks": check_record(
            measured.agreement,
            complete=all(len(one.images) == num for each in measured.rounds for one in each.values()),
        ),
    }


def _figures(measured: Measured, interval: Interval) -> dict[str, Any]:
    outcomes = [each[interval] for each in measured.rounds]
    ratios = [each[interval].images_per_s / each[CONSTANT].images_per_s for each in measured.rounds]
    rows = total(outcome.denoiser for outcome in outcomes).useful_rows
    return {
        "images_per_s": median(outcome.images_per_s for outcome in outcomes),
        "over_constant": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "rows_an_image": rows / sum(len(outcome.images) for outcome in outcomes),
        "quality": {
            name: {"right": share.value, "interval_95": list(wilson(share))}
            for name, share in measured.quality(interval).items()
        },
    }


def guidance_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    title = f"guidance {figures['guidance_scale']:g} at {figures['steps']} steps, where it applies"
    table = Table("share of the schedule", title=title)
    attributes = list(figures["intervals"][figures["constant"]]["quality"])
    for name in ("images/s", "over constant", "spread", "rows an image", *(f"right {name}" for name in attributes)):
        table.add_column(name, justify="right")
    for name, one in figures["intervals"].items():
        ratio = f"{one['over_constant']:.2f}", f"{one['spread'][0]:.2f} to {one['spread'][1]:.2f}"
        quality = (f"{one['quality'][attribute]['right']:.1%}" for attribute in attributes)
        table.add_row(name, f"{one['images_per_s']:.2f}", *ratio, f"{one['rows_an_image']:.1f}", *quality)
    num = figures["images"] * figures["rounds"]
    table.caption = f"0 is the noisy end; {num} fresh scenes an interval, read by the oracle"
    return Group(table, agreement_table(figures["checks"]), machine_line(figures["machine"]))
