"""The tables and words that every benchmark ends with, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


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
