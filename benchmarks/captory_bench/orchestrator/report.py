"""The figures of `captory bench orchestrator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from captory_bench.measuring.tables import machine_line, targets_table
from captory_bench.measuring.targets import at_least, at_most
from captory_bench.orchestrator.measure import ARMS, IMAGES, JOB, LARGE, PROMPTS, Account, Measured, Run
from captory_bench.orchestrator.probe import IDLE, REST

ITEMS_PER_S = 1500
MAX_COST_GROWTH = 1.15  # of the longest stream over the shortest: a hundredth of noise is not growth
MAX_RSS_SLOPE_BYTES = 100  # an item; a leak of one small object is more
MAX_WIRE_SHARE = 0.05
SETTLED = 0.2  # of the samples, before the allocator has found its size
WIRE_THREADS = ("caller", "image codecs", "gRPC")
WIRE_LAYERS = ("gRPC", "messages", "stream and admission", REST)


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values, those that others rely on first."""
    arms = {name: [one[name] for one in measured.rounds] for name in ARMS} | {LARGE: measured.large}
    job = wire_share(measured.accounts[JOB])
    slope = rss_slope(measured.rss)
    growth = _growth(measured)
    targets = [
        at_least("items/s through all painter stages", [run.items_per_s for run in arms[IMAGES]], ITEMS_PER_S),
        at_most("CPU an item, longest stream over shortest", growth["ratios"], MAX_COST_GROWTH),
        at_most("server's memory, bytes an item", [slope], MAX_RSS_SLOPE_BYTES),
        at_most("wire and image codecs, share of a uniform job's CPU", [job["share"]], MAX_WIRE_SHARE),
    ]
    return {
        "items_per_s": median(run.items_per_s for run in arms[IMAGES]),
        "arms": {name: _arm(runs) for name, runs in arms.items()},
        "batches_over_single_messages": {
            name: median(one[name].items_per_s / one[f"{name}, one a message"].items_per_s for one in measured.rounds)
            for name in (IMAGES, PROMPTS)
        },
        "cost_by_items": growth["points"],
        "rss_slope_bytes_per_item": slope,
        "rss_bytes": measured.rss,
        "us_per_item": {name: _parts(account) for name, account in measured.accounts.items()},
        "event_loop": {name: _layers(account) for name, account in measured.accounts.items()},
        "wire_and_codecs": job,
        "targets": [target.record() for target in targets],
        "checks": {"ok": measured.num_checked > 0, "items": measured.num_checked},
    }


def rss_slope(samples: Sequence[tuple[int, int]]) -> float:
    """Bytes an item, by least squares, once the allocator has settled."""
    settled = samples[int(SETTLED * len(samples)) :]
    done, num_bytes = np.array(settled, dtype=np.float64).T
    return float(np.polyfit(done, num_bytes, 1)[0])


def wire_share(account: Account) -> dict[str, Any]:
    """Of all CPU time, the caller's included: what images and messages cost on their way in and out.

    That is the caller, the image codecs, gRPC's threads, and of the event loop the share that it spends at those and
    at asyncio's own turning. A thread that there was none of has spent nothing.
    """
    spent = {"caller": account.caller_cpu_s, **account.cpu_s}
    spent.pop("probe", None)
    of_loop = sum(share for name, share in _layers(account).items() if name in WIRE_LAYERS)
    wire = sum(spent.get(name, 0.0) for name in WIRE_THREADS) + of_loop * spent["event loop"]
    return {
        "share": wire / sum(spent.values()),
        "all_but_graphs_share": 1 - (spent.get("lanes", 0.0) + spent.get("other", 0.0)) / sum(spent.values()),
        "ms_per_image": {name: 1000 * seconds / account.num_items for name, seconds in sorted(spent.items())},
        "images": account.num_items,
    }


def _arm(runs: Sequence[Run]) -> dict[str, Any]:
    speeds = [run.items_per_s for run in runs]
    return {
        "items_per_s": median(speeds),
        "spread": [min(speeds), max(speeds)],
        "first_result_ms": median(1000 * run.first_s for run in runs),
        "server_cpu_us": median(1e6 * run.server_cpu_s / run.num_items for run in runs),
        "caller_cpu_us": median(1e6 * run.caller_cpu_s / run.num_items for run in runs),
        "items": runs[0].num_items,
    }


def _growth(measured: Measured) -> dict[str, Any]:
    costs: dict[int, list[float]] = {}
    for runs in measured.growth:
        for num, run in runs.items():
            costs.setdefault(num, []).append(1e6 * run.cpu_s)
    longest = max(costs)
    return {
        "points": {str(num): median(found) for num, found in costs.items()},
        "ratios": [median(costs[longest]) / cost for cost in costs[min(costs)]],
    }


def _parts(account: Account) -> dict[str, float]:
    return {name: 1e6 * seconds / account.num_items for name, seconds in sorted(account.cpu_s.items())}


def _layers(account: Account) -> dict[str, float]:
    busy = {name: num for name, num in account.event_loop_samples.items() if name != IDLE}
    return {name: num / sum(busy.values()) for name, num in sorted(busy.items(), key=lambda one: -one[1])}


def orchestrator_tables(figures: dict[str, Any]) -> Group:
    """For people."""
    job = figures["wire_and_codecs"]
    batches = figures["batches_over_single_messages"].items()
    return Group(
        _arms_table(figures),
        "several items a message: " + ", ".join(f"{name} {ratio:.2f} times as fast" for name, ratio in batches),
        _pairs("items of a stream", "CPU us an item", figures["cost_by_items"], "{:.0f}".format),
        f"server's memory: {figures['rss_slope_bytes_per_item']:+.1f} bytes an item over the longest stream",
        *(
            _pairs(f"{name}: thread", "CPU us an item", parts, "{:.0f}".format)
            for name, parts in figures["us_per_item"].items()
        ),
        *(
            _pairs(f"{name}: event loop", "share", parts, "{:.0%}".format)
            for name, parts in figures["event_loop"].items()
        ),
        _pairs(f"uniform job of {job['images']} photographs", "CPU ms an image", job["ms_per_image"], "{:.2f}".format),
        targets_table(figures["targets"]),
        machine_line(figures["machine"]),
    )


def _arms_table(figures: dict[str, Any]) -> Table:
    table = Table("items", title="one stream, server and caller on two CPUs, graphs that cost next to nothing")
    for heading in ("items/s", "spread", "first result, ms", "server CPU us", "caller CPU us"):
        table.add_column(heading, justify="right")
    for name, arm in figures["arms"].items():
        low, high = arm["spread"]
        costs = (f"{arm[key]:.0f}" for key in ("server_cpu_us", "caller_cpu_us"))
        table.add_row(
            name, f"{arm['items_per_s']:.0f}", f"{low:.0f} to {high:.0f}", f"{arm['first_result_ms']:.1f}", *costs
        )
    return table


def _pairs(name: str, value: str, pairs: dict[str, float], shown: Callable[[float], str]) -> Table:
    table = Table(name, value)
    table.columns[1].justify = "right"
    for key, number in pairs.items():
        table.add_row(key, shown(number))
    return table
