"""The figures of `captory bench peers`: ratios within pairs, targets, and whether the peers painted the same images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from captory_bench.measuring.checks import MAX_OTHER_PROMPTS, agrees, check_record, worst
from captory_bench.measuring.machine import package_version
from captory_bench.measuring.outcome import Agreement, Outcome, compare
from captory_bench.measuring.targets import Target, at_least
from captory_bench.peers.contenders import CAPTORY, PeerOutcome
from captory_bench.peers.measure import Measured, Pair, Versus
from captory_bench.peers.open_loop import Search
from captory_engine.prompts import accept_rewrite

UNIFORM, REWRITTEN, MIXED, CAPACITY = "uniform", "rewritten", "mixed", "capacity"
PACKAGES = ("torch", "diffusers", "transformers", "litserve", "ray", "tritonclient")
MIN_SERVED = {UNIFORM: 1.0, CAPACITY: 1.5}
MIN_RATIOS = {
    "diffusers-1": {UNIFORM: 3.0},
    "diffusers": {MIXED: 1.3},
    "litserve": MIN_SERVED,
    "litserve-together": MIN_SERVED,
    "ray": MIN_SERVED,
    "triton": MIN_SERVED,
}


def summarise(measured: Measured) -> dict[str, Any]:
    """The figures as plain values. A peer that painted other images, or not all that it should, gets none."""
    agreements = {name: agreement(versus) for name, versus in measured.peers.items()}
    settings = measured.settings
    faults = {name: _fault(versus, agreements[name], settings.num_images) for name, versus in measured.peers.items()}
    right = {name: versus for name, versus in measured.peers.items() if not faults[name]}
    wrong = {name: fault for name, fault in faults.items() if fault}
    return {
        "targets": [target.record() for name, versus in right.items() for target in targets(name, versus)],
        "peers": {name: _figures(versus) for name, versus in right.items()},
        "not_measured": {**measured.missing, **wrong},
        "settings": {CAPTORY: measured.captory, **{name: versus.settings for name, versus in right.items()}},
        "p95_bound_s": measured.bound_s,
        "images": settings.num_images,
        "arrivals": settings.num_arrivals,
        "steps": settings.conditions.steps,
        "rounds": settings.num_rounds,
        "versions": {name: package_version(name) for name in PACKAGES},
        "checks": check_record(
            {f"{name} {work}": found for name, works in agreements.items() for work, found in works.items()},
            complete=not wrong,
        ),
    }


def _fault(versus: Versus, agreements: dict[str, Agreement], num_images: int) -> str:
    """Why there are no figures of this peer; empty when all was right."""
    if not all(_rewrote(outcome) for pair in versus.rewritten for outcome in pair):
        return "captions were not rewritten: no figures"
    if not all(map(agrees, agreements.values())):
        return "its images are not Captory's: no figures"
    return "" if _complete(versus, num_images) else "images are missing: no figures"


def _rewrote(outcome: Outcome) -> bool:
    """Whether the prompts hold what is accepted of a writer; a few may have kept their caption."""
    refused = [prompt for prompt in outcome.prompts.values() if not accept_rewrite(prompt.partition(", ")[2])]
    return len(refused) <= MAX_OTHER_PROMPTS * len(outcome.prompts)


def ratios(versus: Versus) -> dict[str, list[float]]:
    """Captory's rate over the peer's by work: a value a round, or the edges' lowest, likely and highest ratio."""
    by_round = {
        work: [pair.captory.images_per_s / pair.peer.images_per_s for pair in pairs]
        for work, pairs in _works(versus).items()
    }
    return {**by_round, CAPACITY: _capacity_ratio(*_searches(versus))} if versus.capacity else by_round


def targets(name: str, versus: Versus) -> list[Target]:
    """What is aimed at for this peer, beside what came out."""
    found = ratios(versus)
    return [
        at_least(f"{CAPTORY}_over_{name.replace('-', '_')}_{work}", found[work], bound)
        for work, bound in MIN_RATIOS[name].items()
        if work in found
    ]


def agreement(versus: Versus) -> dict[str, Agreement]:
    """By work, how far the peer's images are from Captory's, over all rounds and rates.

    Where captions are rewritten, how far both are from a plain loop over their own prompts.
    """
    pairs = {work: [(pair.captory, pair.peer) for pair in pairs] for work, pairs in _works(versus).items()}
    if versus.capacity:
        captory, peer = _searches(versus)
        pairs[CAPACITY] = [(a.outcome, b.outcome) for a, b in zip(captory.probes, peer.probes, strict=False)]
    found = {work: worst([compare(*pair) for pair in pairs[work]]) for work in pairs if work != REWRITTEN}
    return {**found, REWRITTEN: worst(versus.references)} if versus.references else found


def _works(versus: Versus) -> dict[str, list[Pair]]:
    works = (UNIFORM, versus.uniform), (REWRITTEN, versus.rewritten), (MIXED, versus.mixed)
    return {work: pairs for work, pairs in works if pairs}


def _searches(versus: Versus) -> tuple[Search, Search]:
    captory, (peer,) = versus.capacity[CAPTORY], [one for name, one in versus.capacity.items() if name != CAPTORY]
    return captory, peer


def _capacity_ratio(captory: Search, peer: Search) -> list[float]:
    """Each edge lies between the highest rate held and the lowest failed; a peer that held none has only the latter."""
    lowest = captory.held_per_s / peer.failed_per_s
    if not peer.held_per_s:
        return [lowest]
    likely, highest = captory.held_per_s / peer.held_per_s, captory.failed_per_s / peer.held_per_s
    return [lowest, likely, highest if math.isfinite(highest) else likely]


def _figures(versus: Versus) -> dict[str, Any]:
    found = ratios(versus)
    works = {work: _rates(pairs) for work, pairs in _works(versus).items()}
    if versus.capacity:
        works[CAPACITY] = {
            name: _edge(search) for name, search in zip((CAPTORY, "peer"), _searches(versus), strict=True)
        }
    return {
        work: {"ratio": median(found[work]), "spread": [min(found[work]), max(found[work])], **figures}
        for work, figures in works.items()
    }


def _rates(pairs: Sequence[Pair]) -> dict[str, Any]:
    return {CAPTORY: _rate([pair.captory for pair in pairs]), "peer": _rate([pair.peer for pair in pairs])}


def _rate(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    speeds = [outcome.images_per_s for outcome in outcomes]
    return {
        "images": len(outcomes[0].images),
        "images_per_s": median(speeds),
        "images_per_s_by_round": speeds,
        "cpu_s_per_image": median(outcome.times.cpu_s / len(outcome.images) for outcome in outcomes),
        **_batching(outcomes),
    }


def _batching(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """A peer's batches by how many requests were in each, and the mean; nothing of who does not tell."""
    batches = sum((outcome.batches for outcome in outcomes if isinstance(outcome, PeerOutcome)), Counter[int]())
    if not batches:
        return {}
    num_requests = sum(size * num for size, num in batches.items())
    return {"batches": dict(sorted(batches.items())), "mean_batch": num_requests / batches.total()}


def _edge(search: Search) -> dict[str, Any]:
    """The edge; `failed_per_s` is None where no rate that was tried failed."""
    failed = search.failed_per_s
    return {
        "images_per_s": search.held_per_s,
        "failed_per_s": failed if math.isfinite(failed) else None,
        "probes": [
            {"images_per_s": probe.rate_per_s, "p95_s": probe.p95_s, **_batching([probe.outcome])}
            for probe in search.probes
        ],
        **_batching(probe.outcome for probe in search.probes if probe.p95_s <= search.bound_s),
    }


def _complete(versus: Versus, num_images: int) -> bool:
    """Whether Captory painted every item, and the peer at least some of them and no others."""
    pairs = [*versus.uniform, *versus.rewritten, *versus.mixed]
    return all(
        len(pair.captory.images) == num_images
        and pair.captory.images.keys() >= pair.peer.images.keys()
        and pair.peer.images
        for pair in pairs
    )
