"""From outcomes to figures: medians over rounds, ratios within a round, the tail, and whether outputs agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from captory_bench.arms import (
    ARMS,
    BARE_LOOP,
    REQUEST_FIXED,
    REQUEST_GROUPED,
    REQUEST_SHRINKING,
    SERVED_MIXED,
    SERVED_UNIFORM,
    define,
)
from captory_bench.arrivals import percentiles
from captory_bench.comparison import Measured
from captory_bench.outcome import Agreement, Outcome, compare
from captory_bench.workload import SHORT_STEPS, Painting
from captory_engine.device import StageCounts

# ratio: (numerator, denominator), both images/s of the same round and items
RATIOS = {
    "grpc_over_bare_loop": (SERVED_UNIFORM, BARE_LOOP),
    "step_over_request_level": (SERVED_MIXED, REQUEST_FIXED),
    "step_over_shrinking_request_level": (SERVED_MIXED, REQUEST_SHRINKING),
    "step_over_grouped_request_level": (SERVED_MIXED, REQUEST_GROUPED),
}
# Batches of another size round otherwise; what is more than this is another image.
MAX_MEAN_DIFFERENCE = 2.0  # grey levels of 255, the mean over an image
MAX_OTHER_PROMPTS = 0.05  # of the items: a caption's word on the edge may fall to the other side


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values, those that others rely on first."""
    ratios = {name: _ratios(measured, *pair) for name, pair in RATIOS.items()}
    mixed = _total(outcomes[SERVED_MIXED].denoiser for outcomes in measured.rounds)
    return {
        **{name: median(values) for name, values in ratios.items()},
        "mean_rows": mixed.computed_rows / mixed.batches,
        "row_efficiency": mixed.useful_rows / mixed.computed_rows,
        "images_per_s": _speed(measured, SERVED_UNIFORM),
        "spread": {name: [min(values), max(values)] for name, values in ratios.items()},
        "by_cpu_time": {name: _cpu_ratio(measured, *pair) for name, pair in RATIOS.items()},
        "arms": {name: _arm(measured, name) for name in ARMS},
        "batch_rows": {str(rows): num for rows, num in sorted(mixed.batch_rows.items())},
        "latency": _latency(measured),
        "checks": check(measured),
        "batch_size": measured.batch_size,
        "images": len(measured.rounds[0][BARE_LOOP].images),
        "rounds": len(measured.rounds),
    }


def check(measured: Measured) -> dict[str, Any]:
    """Whether every arm painted every image, and the served ones what the in-process ones painted."""
    pairs = ((SERVED_UNIFORM, BARE_LOOP), *((SERVED_MIXED, name) for name in (REQUEST_FIXED, REQUEST_GROUPED)))
    agreements = {
        f"{one}~{other}": _worst([compare(outcomes[one], outcomes[other]) for outcomes in measured.rounds])
        for one, other in pairs
    }
    counts = {len(outcome.images) for outcomes in measured.rounds for outcome in outcomes.values()}
    return {
        "ok": len(counts) == 1 and all(map(_agrees, agreements.values())),
        "max_mean_difference": MAX_MEAN_DIFFERENCE,
        "max_other_prompts": MAX_OTHER_PROMPTS,
        "agreement": {name: agreement._asdict() for name, agreement in agreements.items()},
    }


def _agrees(agreement: Agreement) -> bool:
    num = agreement.num_compared + agreement.num_other_prompts
    few = agreement.num_other_prompts <= MAX_OTHER_PROMPTS * num
    return agreement.num_compared > 0 and few and agreement.worst_mean_difference <= MAX_MEAN_DIFFERENCE


def _worst(agreements: Sequence[Agreement]) -> Agreement:
    """All rounds' agreements as one."""
    return Agreement(
        sum(one.num_compared for one in agreements),
        sum(one.num_other_prompts for one in agreements),
        max(one.worst_mean_difference for one in agreements),
        max(one.max_difference for one in agreements),
    )


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
    counts = _total(outcomes[name].denoiser for outcomes in measured.rounds)
    return {
        **define(measured.graphs, measured.batch_size, measured.steps)[name]._asdict(),
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
        for name in (SERVED_MIXED, REQUEST_GROUPED)
    }
    return {"arrivals_per_s": measured.arrivals_per_s, **contenders}


def _tail(outcomes: Sequence[Outcome], jobs: Sequence[Sequence[Painting]]) -> dict[str, float]:
    latencies = [(job, outcome.latencies[job.id]) for outcome, own in zip(outcomes, jobs, strict=True) for job in own]
    everyone = percentiles(latency_s for _, latency_s in latencies)
    short = percentiles(latency_s for job, latency_s in latencies if job.steps == SHORT_STEPS)
    return {**everyone._asdict(), "short_p50_s": short.p50_s, "short_p95_s": short.p95_s}


def _total(counts: Iterable[StageCounts]) -> StageCounts:
    total = StageCounts()
    for one in counts:
        total.batches += one.batches
        total.useful_rows += one.useful_rows
        total.computed_rows += one.computed_rows
        total.seconds += one.seconds
        total.batch_rows = Counter(total.batch_rows) + one.batch_rows
    return total
