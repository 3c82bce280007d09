"""The figures of `captory bench writer`, held against their target, and as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table

from captory_bench.measuring.checks import counted
from captory_bench.measuring.tables import machine_line, targets_table
from captory_bench.measuring.targets import at_most
from captory_bench.writer.measure import ALONE, EMBEDDED, VLLM, Measured, arms_of
from captory_bench.writer.prompting import ATTRIBUTES, Written

STAGE = "write"
MAX_SHARE = 0.10  # of a job's stage time, for prompts
MAX_WORSE = 0.05  # of the share accepted, and of attributes kept, against the embedded writer's
MIN_JUDGED = 100  # prompts over all rounds: of fewer, one alone may make that difference
# ratio: (numerator, denominator), both prompts/s of the same round
RATIOS = {
    "embedded_over_one_at_a_time": (EMBEDDED, f"{EMBEDDED}, {ALONE}"),
    "vllm_over_one_at_a_time": (VLLM, f"{VLLM}, {ALONE}"),
    "vllm_over_embedded": (VLLM, EMBEDDED),
    "one_at_a_time_vllm_over_embedded": (f"{VLLM}, {ALONE}", f"{EMBEDDED}, {ALONE}"),
}


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values."""
    arms = {name: _arm([one[name] for one in measured.rounds]) for name in measured.rounds[0]}
    checks = check(measured, arms)
    shares = [jobs[EMBEDDED].device.share((STAGE,)) for jobs in measured.jobs]
    return {
        "targets": counted([at_most("prompts, share of a job's stage time", shares, MAX_SHARE)], checks),
        "arms": arms,
        "ratios": {name: _ratio(measured, *pair) for name, pair in RATIOS.items() if set(pair) <= arms.keys()},
        "job": _job(measured, shares),
        "vllm": measured.vllm,
        "not_measured": measured.not_measured,
        "prompts": measured.settings.num_prompts,
        "rounds": len(measured.rounds),
        "checks": checks,
    }


def check(measured: Measured, arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether every prompt and image came, and the embedded writer's are no worse one at a time than many at once.

    vLLM has no target: arms of it that are worse are named, and make nothing wrong.
    """
    complete = all(one.complete for written in measured.rounds for one in written.values())
    painted = all(
        len(job.outcome.images) == measured.settings.num_photos for jobs in measured.jobs for job in jobs.values()
    )
    worse = [name for name, arm in arms.items() if _is_worse(arm, arms[EMBEDDED])]
    own = {arm.name for arm in arms_of(EMBEDDED)}
    ok = complete and painted and own.isdisjoint(worse)
    return {"ok": ok, "max_worse": MAX_WORSE, "min_judged": MIN_JUDGED, "worse": worse}


def _is_worse(arm: dict[str, Any], than: dict[str, Any]) -> bool:
    """Each share is judged where both arms have enough prompts behind it."""
    judged = [key for key in arm["judged"] if min(arm["judged"][key], than["judged"][key]) >= MIN_JUDGED]
    return any(arm[key] < than[key] - MAX_WORSE for key in judged)


def _arm(runs: Sequence[Written]) -> dict[str, Any]:
    speeds = [run.prompts_per_s for run in runs]
    num_asked, num_accepted = sum(len(run.tasks) for run in runs), sum(len(run.accepted) for run in runs)
    num_kept = sum(run.num_kept() for run in runs)
    return {
        "prompts_per_s": median(speeds),
        "spread": [min(speeds), max(speeds)],
        "prompts": len(runs[0].tasks),
        "accepted": num_accepted / num_asked,
        "kept": num_kept / (num_accepted * len(ATTRIBUTES)) if num_accepted else None,
        "judged": {"accepted": num_asked, "kept": num_accepted},
    }


def _ratio(measured: Measured, above: str, below: str) -> dict[str, Any]:
    ratios = [one[above].prompts_per_s / one[below].prompts_per_s for one in measured.rounds]
    return {"median": median(ratios), "spread": [min(ratios), max(ratios)]}


def _job(measured: Measured, shares: Sequence[float]) -> dict[str, Any]:
    """A whole job with rewritten captions: what its prompts cost, and how fast it is by who writes them."""
    speeds = {name: [jobs[name].outcome.images_per_s for jobs in measured.jobs] for name in measured.jobs[0]}
    return {
        "photos": measured.settings.num_photos,
        "share": median(shares),
        "spread": [min(shares), max(shares)],
        "images_per_s": {
            name: {"median": median(found), "spread": [min(found), max(found)]} for name, found in speeds.items()
        },
    }


def writer_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    missing = (f"not measured: {name}: {why}" for name, why in figures["not_measured"].items())
    on_vllm = [f"vllm: {figures['vllm']}"] if figures["vllm"] else []
    return Group(
        _arms(figures),
        _ratios(figures),
        _jobs(figures["job"]),
        targets_table(figures["targets"]),
        *on_vllm,
        *missing,
        machine_line(figures["machine"]),
    )


def _arms(figures: dict[str, Any]) -> Table:
    title = f"{figures['prompts']} captions an arm and round, median of {figures['rounds']} rounds"
    table = Table("writer", title=title)
    for name in ("prompts/s", "spread", "prompts", "accepted", "attributes kept"):
        table.add_column(name, justify="right")
    for name, arm in figures["arms"].items():
        low, high = arm["spread"]
        kept = "" if arm["kept"] is None else f"{arm['kept']:.1%}"
        speed = f"{arm['prompts_per_s']:.1f}", f"{low:.1f} to {high:.1f}"
        table.add_row(name, *speed, str(arm["prompts"]), f"{arm['accepted']:.1%}", kept)
    checks = figures["checks"]
    table.caption = f"WORSE THAN THE EMBEDDED WRITER'S: {', '.join(checks['worse'])}" if checks["worse"] else None
    return table


def _ratios(figures: dict[str, Any]) -> Table:
    table = Table("ratio", "median", "spread", title="ratios of prompts/s, same captions and round")
    for name, ratio in figures["ratios"].items():
        low, high = ratio["spread"]
        table.add_row(name.replace("_", " "), f"{ratio['median']:.2f}", f"{low:.2f} to {high:.2f}")
    return table


def _jobs(job: dict[str, Any]) -> Table:
    low, high = job["spread"]
    title = f"a job of {job['photos']} photographs, captions rewritten"
    table = Table("writer", "images/s", "spread", title=title)
    for name, speed in job["images_per_s"].items():
        slowest, fastest = speed["spread"]
        table.add_row(name, f"{speed['median']:.2f}", f"{slowest:.2f} to {fastest:.2f}")
    table.caption = f"embedded, its prompts take {job['share']:.1%} of all stages' time ({low:.1%} to {high:.1%})"
    return table
