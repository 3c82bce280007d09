"""How somebody without step-level batching meets mixed parameters: what is alike goes together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from captory_bench.measuring.workload import Painting


def alike(jobs: Sequence[Painting]) -> list[list[int]]:
    """The places of the jobs by everything that a batch must share (steps, guidance, sampler), in order of arrival."""
    groups: dict[Painting, list[int]] = {}
    for place, job in enumerate(jobs):
        groups.setdefault(replace(job, id="", prompt="", seed=0), []).append(place)
    return list(groups.values())


def alike_batches(jobs: Sequence[Painting], batch_size: int) -> Iterator[list[Painting]]:
    """Batches of jobs that are alike, `batch_size` at most."""
    for group in alike(jobs):
        for start in range(0, len(group), batch_size):
            yield [jobs[place] for place in group[start : start + batch_size]]


def fewer(jobs: Sequence[Painting], num: int) -> list[Painting]:
    """`num` of the jobs, or up to one less for every kind: as many of each, so that the mix stays what it is."""
    groups = alike(jobs)
    return [jobs[place] for group in groups for place in group[: max(1, num // len(groups))]]
