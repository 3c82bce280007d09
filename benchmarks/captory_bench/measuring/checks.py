"""Whether what was timed was right: images against those of a plain loop over the same graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from captory_bench.measuring import bare_loop, request_level
from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.crews import Crew
from captory_bench.measuring.graphs import open_graphs
from captory_bench.measuring.outcome import Agreement, Outcome, compare
from captory_bench.measuring.subject import Subject
from captory_bench.measuring.targets import Target
from captory_bench.measuring.workload import Painting, Photo
from captory_engine.sessions.options import available_cpus

# Batches of another size round otherwise; what is more than this is another image.
MAX_MEAN_DIFFERENCE = 2.0  # grey levels of 255, the mean over an image
MAX_OTHER_PROMPTS = 0.05  # of the items: a caption's word on the edge may fall to the other side
NUM_SAMPLES = 8  # items of a run that are painted again
REFERENCE_BATCH = 8


def open_reference(subject: Subject) -> Way:
    """The plain loop that timed images are held against: one worker of all CPUs, batches of one small size."""
    graphs = open_graphs(subject.repository, subject.family, backend=subject.backend, num_threads=available_cpus())
    return Way(Crew(graphs), REFERENCE_BATCH)


def agrees(agreement: Agreement) -> bool:
    """Whether two runs painted the same."""
    num = agreement.num_compared + agreement.num_other_prompts
    few = agreement.num_other_prompts <= MAX_OTHER_PROMPTS * num
    return agreement.num_compared > 0 and few and agreement.worst_mean_difference <= MAX_MEAN_DIFFERENCE


def worst(agreements: Sequence[Agreement]) -> Agreement:
    """Several agreements as one."""
    return Agreement(
        sum(one.num_compared for one in agreements),
        sum(one.num_other_prompts for one in agreements),
        max(one.worst_mean_difference for one in agreements),
        max(one.max_difference for one in agreements),
    )


def fold(found: dict[str, Agreement], name: str, agreement: Agreement) -> None:
    """Add one more agreement to those of that name."""
    found[name] = worst([found[name], agreement]) if name in found else agreement


def check_record(found: Mapping[str, Agreement], *, complete: bool) -> dict[str, Any]:
    """As it stands under `checks`: `ok` when every image came (`complete`) and all that were compared agree."""
    return {
        "ok": complete and all(map(agrees, found.values())),
        "max_mean_difference": MAX_MEAN_DIFFERENCE,
        "max_other_prompts": MAX_OTHER_PROMPTS,
        "agreement": {name: agreement._asdict() for name, agreement in found.items()},
    }


def counted(goals: Iterable[Target], checks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Targets as they are recorded; none where what was timed was wrong."""
    return [goal.record() for goal in goals] if checks["ok"] else []


def check_paintings(way: Way, jobs: Sequence[Painting], outcome: Outcome) -> Agreement:
    """Some of a run's images, evenly spread, against the same painted by a plain loop."""
    return compare(outcome, request_level.run_fixed(way, _spread(jobs)))


def check_photos(way: Way, photos: Sequence[Photo], outcome: Outcome, steps: int) -> Agreement:
    """The same for photographs, captioned and painted."""
    return compare(outcome, bare_loop.run(way, bare_loop.prepare(way.crew.graphs, _spread(photos)), steps))


def _spread(items: Sequence[Any]) -> list[Any]:
    return list(items[:: max(1, len(items) // NUM_SAMPLES)])[:NUM_SAMPLES]
