"""`captory bench sharing`: how full the device is kept, how classes of work share it, and what mixed rows waste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.checks import check_paintings, check_photos, fold, open_reference
from captory_bench.measuring.outcome import Agreement, Outcome
from captory_bench.measuring.served import Served, server_options, serving
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import WARM_UP, Painting, paintings, photos
from captory_bench.sharing.classes import Plan, Shared, probe, share
from captory_bench.sharing.coscheduling import Job, run_job
from captory_engine.diffusion.samplers import SAMPLERS

FIRST_ROUND = 100  # batches of scenes, counting up
WARM_UP_ITEMS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    subject: Subject
    num_images: int = 256  # of a bulk job
    num_mixed: int = 96
    num_interactive: int = 24
    num_probes: int = 16
    num_rounds: int = 3
    window_s: float = 5.0
    settle_s: float = 2.0
    steps: int = 0  # 0: the family's default


@dataclass(slots=True)
class Measured:
    """Everything that came out, by round, and how far sampled images are from those of a plain loop."""

    options: list[str]
    lanes: int
    caps: dict[str, int]
    jobs: list[Job] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    mixed: list[Outcome] = field(default_factory=list)
    probes: list[int] = field(default_factory=list)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    complete: bool = True


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all three parts. Raises `CaptoryError`, `ClientError` or `ArmFailed`."""
    options = server_options(*settings.subject)
    reference = open_reference(settings.subject)
    steps = settings.steps or reference.crew.graphs.painter.defaults.steps
    async with serving(options) as served:
        await served.photos(photos(WARM_UP_ITEMS, WARM_UP), steps)
        stats = await served.stats()
        measured = Measured(options, stats.lanes, stats.caps)
        for index in range(settings.num_rounds):
            await _bulk_job(settings, measured, served, reference, steps, index, say)
            await _mixed_stream(settings, measured, served, reference, index, say)
        plan = _plan(settings, measured, steps)
        for index in range(settings.num_rounds):
            await _classes(measured, served, reference, plan, index, say)
        say("how soon an item of one step is taken in")
        measured.probes = await probe(served, plan, settings.num_probes)
        measured.caps = (await served.stats()).caps
    return measured


async def _bulk_job(
    settings: Settings, measured: Measured, served: Served, reference: Way, steps: int, index: int, say: Say
) -> None:
    items = photos(settings.num_images, FIRST_ROUND + index)
    job = await run_job(served, items, steps)
    measured.jobs.append(job)
    measured.complete &= len(job.outcome.images) == len(items)
    fold(measured.agreement, "bulk job", check_photos(reference, items, job.outcome, steps))
    say(f"bulk job {index + 1}: {job.outcome.images_per_s:.2f} images/s, busy {job.window.busy_share:.1%}")


async def _mixed_stream(
    settings: Settings, measured: Measured, served: Served, reference: Way, index: int, say: Say
) -> None:
    jobs = mixed_jobs(settings.num_mixed, FIRST_ROUND + index)
    outcome = await served.paintings(jobs)
    measured.mixed.append(outcome)
    measured.complete &= len(outcome.images) == len(jobs)
    fold(measured.agreement, "mixed stream", check_paintings(reference, jobs, outcome))
    rows = outcome.denoiser
    say(f"mixed stream {index + 1}: {rows.useful_rows} of {rows.computed_rows} rows useful")


async def _classes(measured: Measured, served: Served, reference: Way, plan: Plan, index: int, say: Say) -> None:
    shared = await share(served, plan, index)
    measured.shared.append(shared)
    alone, beside = (shared.alone_jobs, shared.alone), (shared.beside_jobs, shared.beside)
    for name, (jobs, outcome) in {"interactive alone": alone, "interactive beside bulk": beside}.items():
        measured.complete &= len(outcome.images) == len(jobs)
        fold(measured.agreement, name, check_paintings(reference, jobs, outcome))
    say(
        f"classes {index + 1}: bulk {shared.bulk_alone_per_s:.2f} alone, {shared.bulk_beside_per_s:.2f} images/s shared"
    )


def _plan(settings: Settings, measured: Measured, steps: int) -> Plan:
    rate_per_s = median(job.outcome.images_per_s for job in measured.jobs)
    return Plan(steps, settings.num_interactive, rate_per_s, settings.window_s, settings.settle_s)


def mixed_jobs(num: int, scenes: int, samplers: Sequence[str] = tuple(SAMPLERS)) -> list[Painting]:
    """Prompts of mixed steps, guidance and samplers; the sampler is independent of the others."""
    chosen = np.resize(np.arange(len(samplers)), num)
    np.random.default_rng(scenes).shuffle(chosen)
    jobs = paintings(num, scenes, mixed_guidance=True)
    return [replace(job, sampler=samplers[int(index)]) for job, index in zip(jobs, chosen, strict=True)]
