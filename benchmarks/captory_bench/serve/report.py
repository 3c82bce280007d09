"""From outcomes to figures: medians over rounds, ratios within a round, the tail, and whether outputs agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from captory_bench.measuring.arrivals import percentiles
from captory_bench.measuring.checks import check_record, counted, worst
from captory_bench.measuring.outcome import Agreement, Outcome, compare
from captory_bench.measuring.stats import total
from captory_bench.measuring.targets import at_least, at_most
from captory_bench.measuring.workload import SHORT_STEPS, Painting
from captory_bench.serve.arms import (
    ARMS,
    BARE_LOOP,
    FIXED_GUIDANCE,
    GROUPED_GUIDANCE,
    REQUEST_FIXED,
    REQUEST_GROUPED,
    REQUEST_SHRINKING,
    SERVED_GUIDANCE,
    SERVED_MIXED,
    SERVED_UNIFORM,
    SINGLE_GUIDANCE,
    define,
)
from captory_bench.serve.measure import Measured

# ratio: (numerator, denominator), both images/s of the same round and items
RATIOS = {
    "grpc_over_bare_loop": (SERVED_UNIFORM, BARE_LOOP),
    "step_over_request_level": (SERVED_MIXED, REQUEST_FIXED),
    "step_over_shrinking_request_level": (SERVED_MIXED, REQUEST_SHRINKING),
    "step_over_grouped_request_level": (SERVED_MIXED, REQUEST_GROUPED),
    "step_over_request_level_mixed_guidance": (SERVED_GUIDANCE, FIXED_GUIDANCE),
    "step_over_grouped_mixed_guidance": (SERVED_GUIDANCE, GROUPED_GUIDANCE),
    "step_over_single_mixed_guidance": (SERVED_GUIDANCE, SINGLE_GUIDANCE),
}
MIN_RATIOS = {"grpc_over_bare_loop": 0.95, "step_over_request_level_mixed_guidance": 1.8}
MAX_SHORT_P95 = 0.5  # of the arm that groups equal parameters


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values, those that others rely on first."""
    ratios = {name: _ratios(measured, *pair) for name, pair in RATIOS.items()}
    tail = _short_tail(measured)
    mixed = total(outcomes[SERVED_GUIDANCE].denoiser for outcomes in measured.rounds)
    goals = [at_least(name, ratios[name], bound) for name, bound in MIN_RATIOS.items()]
    goals.append(at_most("short_p95_over_grouped", tail, MAX_SHORT_P95))
    checks = check(measured)
    return {
        **{name: median(values) for name, values in ratios.items()},
        "short_p95_over_grouped": median(tail),
        "mean_rows": mixed.computed_rows / mixed.batches,
        "row_efficiency": mixed.useful_rows / mixed.computed_rows,
        "images_per_s": _speed(measured, SERVED_UNIFORM),
        "targets": counted(goals, checks),
        "spread": {name: [min(values), max(values)] for name, values in ratios.items()},
        "by_cpu_time": {name: _cpu_ratio(measured, *pair) for name, pair in RATIOS.items()},
        "arms": {name: _arm(measured, name) for name in ARMS},
        "batch_rows": {str(rows): num for rows, num in sorted(mixed.batch_rows.items())},
        "latency": _latency(measured),
        "checks": checks,
        "batch_size": measured.way.batch_size,
        "crew": str(measured.way.crew),
        "images": len(measured.rounds[0][BARE_LOOP].images),
        "rounds": len(measured.rounds),
    }


def check(measured: Measured) -> dict[str, Any]:
    """Whether every arm painted every image, and the served ones what the in-process ones painted."""
    pairs = (
        (SERVED_UNIFORM, BARE_LOOP),
        *((SERVED_MIXED, name) for name in (REQUEST_FIXED, REQUEST_SHRINKING, REQUEST_GROUPED)),
        *((SERVED_GUIDANCE, name) for name in (FIXED_GUIDANCE, GROUPED_GUIDANCE, SINGLE_GUIDANCE)),
    )
    found = {f"{one}~{other}": _agreement(measured.rounds, one, other) for one, other in pairs}
    found["arrivals"] = _agreement(measured.open_loop, SERVED_GUIDANCE, GROUPED_GUIDANCE)
    counts = {len(outcome.images) for outcomes in measured.rounds for outcome in outcomes.values()}
    return check_record(found, complete=len(counts) == 1)


def _agreement(rounds: Sequence[Mapping[str, Outcome]], one: str, other: str) -> Agreement:
    return worst([compare(outcomes[one], outcomes[other]) for outcomes in rounds])


def _ratios(measured: Measured, above: str, below: str) -> list[float]:
    return [outcomes[above].images_per_s / outcomes[below].images_per_s for outcomes in measured.rounds]


def _cpu_ratio(measured: Measured, above: str, below: str) -> float | None:
    """The median of the same ratio by CPU time an image, which other work on the machine hardly changes."""
    if not all(outcomes[name].times.cpu_s for outcomes in measured.rounds for name in (above, below)):
        return None
    return median(outcomes[below].times.cpu_s / outcomes[above].times.cpu_s for outcomes in measured.rounds)


def _speed(measured: Measured, name: str) -> float:
    return median(outcomes[name].images_per_s for outcomes in measured.rounds)


def _arm(measured: Measured, name: str) -> dict[str, Any]:
    counts = total(outcomes[name].denoiser for outcomes in measured.rounds)
    return {
        **define(measured.way, measured.single, measured.steps)[name]._asdict(),
        "images_per_s": _speed(measured, name),
        "images_per_s_by_round": [outcomes[name].images_per_s for outcomes in measured.rounds],
        "cpu_s_per_image": median(one[name].times.cpu_s / len(one[name].images) for one in measured.rounds),
        "mean_rows": counts.computed_rows / counts.batches,
        "row_efficiency": counts.useful_rows / counts.computed_rows,
    }


def _latency(measured: Measured) -> dict[str, Any]:
    """Percentiles over all open-loop rounds, of all items and of the short ones."""
    contenders = {
        name: _tail([outcomes[name] for outcomes in measured.open_loop], measured.open_loop_jobs)
        for name in (SERVED_GUIDANCE, GROUPED_GUIDANCE)
    }
    return {"arrivals_per_s": measured.arrivals_per_s, **contenders}


def _short_tail(measured: Measured) -> list[float]:
    """By round of arrivals, the served arm's p95 of the short items over that of the arm that groups equals."""
    tails = [
        [_tail([outcomes[name]], [jobs])["short_p95_s"] for name in (SERVED_GUIDANCE, GROUPED_GUIDANCE)]
        for outcomes, jobs in zip(measured.open_loop, measured.open_loop_jobs, strict=True)
    ]
    return [served / grouped for served, grouped in tails]


def _tail(outcomes: Sequence[Outcome], jobs: Sequence[Sequence[Painting]]) -> dict[str, float]:
    latencies = [(job, outcome.latencies[job.id]) for outcome, own in zip(outcomes, jobs, strict=True) for job in own]
    everyone = percentiles(latency_s for _, latency_s in latencies)
    short = percentiles(latency_s for job, latency_s in latencies if job.steps == SHORT_STEPS)
    return {**everyone._asdict(), "short_p50_s": short.p50_s, "short_p95_s": short.p95_s}
