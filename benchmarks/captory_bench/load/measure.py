"""`captory bench load`: MLPerf's offline and server scenarios, then goodput when more is asked than can be done.

The server scenario is searched for the highest Poisson rate whose p99 stays within the bound. For goodput the server
is told how many items it may hold, by Little's law: as many as it finishes within the bound at the rate that it holds,
less some spare, so that what it takes in is done in time and the rest is refused at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from captory_bench.load.client import Load, kept, offer
from captory_bench.load.loadgen import PACKAGE, Verdict, installed, run_loadgen
from captory_bench.load.loadgen_child import OFFLINE, SERVER
from captory_bench.measuring.arrivals import poisson_arrivals_within
from captory_bench.measuring.bare_loop import Way
from captory_bench.measuring.checks import NUM_SAMPLES, check_paintings, fold, open_reference
from captory_bench.measuring.outcome import Agreement, Outcome
from captory_bench.measuring.served import Served, server_options, serving
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import Painting, paintings

WARM_UP, TRIAL, OFFLINE_OWN, POISSON = 7000, 7001, 7002, 7500  # batches of scenes
WARM_UP_ITEMS, TRIAL_ITEMS = 16, 64
LOWEST = 0.3  # of the offline rate: where the search begins
SPARE = 0.8  # of the items that the server finishes within the bound, at the rate that holds it
LONG_ENOUGH = 1.4  # times the samples that the short trial's rate asks for: a long run is faster
BACK_OFF, MAX_BACK_OFFS = 0.85, 6
MULTIPLES = (1, 2, 10)
FULL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and for how long."""

    subject: Subject
    bound_s: float = 1.0  # of p99
    seconds: float = 12.0  # of a run of the search, and of goodput
    final_seconds: float = 12.0  # of the runs that are reported
    num_probes: int = 5
    num_rounds: int = 3  # of goodput
    steps: int = 0  # 0: the family's default


@dataclass(slots=True)
class Measured:
    """Everything that came out."""

    steps: int
    with_loadgen: bool
    offline: list[Verdict] = field(default_factory=list)
    searched: list[Verdict] = field(default_factory=list)
    server: Verdict | None = None
    max_items: int = 0
    goodput: list[dict[int, Load]] = field(default_factory=list)
    agreement: dict[str, Agreement] = field(default_factory=dict)


async def measure(settings: Settings, say: Say) -> Measured:
    """Run everything. Raises `CaptoryError`, `ClientError` or `ArmFailed`."""
    reference = open_reference(settings.subject)
    measured = Measured(settings.steps or reference.crew.graphs.painter.defaults.steps, installed())
    bench = _Bench(settings, measured, reference, say)
    if not measured.with_loadgen:
        say(f"{PACKAGE} is not installed: the own client stands in for it")
    options = server_options(*settings.subject)
    async with serving(options) as served:
        await bench.capacity(served)
        await bench.search(served)
    if measured.server is None:
        return measured
    measured.max_items = max(1, int(SPARE * settings.bound_s * measured.server.rate_per_s))
    async with serving([*options, "--max-items", str(measured.max_items)]) as served:
        await served.paintings(_jobs(WARM_UP_ITEMS, WARM_UP, measured.steps))
        for index in range(settings.num_rounds):
            measured.goodput.append(await bench.overload(served, measured.server.rate_per_s, index))
    return measured


@dataclass(slots=True)
class _Bench:
    """The parts, over a server."""

    settings: Settings
    measured: Measured
    reference: Way
    say: Say

    async def capacity(self, served: Served) -> None:
        """Samples a second when all are given at once; a short trial tells how many there must be."""
        steps, seconds = self.measured.steps, self.settings.final_seconds
        await served.paintings(_jobs(WARM_UP_ITEMS, WARM_UP, steps))
        trial = await served.paintings(_jobs(TRIAL_ITEMS, TRIAL, steps))
        self._check("trial", _jobs(TRIAL_ITEMS, TRIAL, steps), trial)
        if self.measured.with_loadgen:
            verdict = await self._loadgen(OFFLINE, served, LONG_ENOUGH * trial.images_per_s, seconds)
        else:
            jobs = _jobs(int(trial.images_per_s * seconds) + 1, OFFLINE_OWN, steps)
            outcome = await served.paintings(jobs)
            self._check("offline", jobs, outcome)
            verdict = Verdict(0.0, outcome.images_per_s, max(outcome.latencies.values()), 0, "")
        self.measured.offline.append(verdict)
        self.say(f"offline: {verdict.samples_per_s:.2f} images/s")

    async def search(self, served: Served) -> None:
        """The highest Poisson rate that holds, then the run that is reported, at less if it does not hold.

        Where that run is longer it begins at less: the longer a run, the surer is the moment that breaks it.
        """
        top = self.measured.offline[-1].samples_per_s

        async def held(rate_per_s: float) -> bool:
            verdict = await self._poisson(served, rate_per_s, self.settings.seconds)
            self.measured.searched.append(verdict)
            return holds(verdict, self.settings.bound_s)

        found = await highest(held, LOWEST * top, top, self.settings.num_probes)
        first = 1 if self.settings.final_seconds > self.settings.seconds else 0
        for rate_per_s in [found * BACK_OFF**times for times in range(first, MAX_BACK_OFFS)] if found else []:
            verdict = await self._poisson(served, rate_per_s, self.settings.final_seconds)
            if holds(verdict, self.settings.bound_s):
                self.measured.server = verdict
                return
            self.measured.searched.append(verdict)

    async def overload(self, served: Served, rate_per_s: float, index: int) -> dict[int, Load]:
        """One round: the found rate and multiples of it; every other round the other way round."""
        loads = {}
        for multiple in MULTIPLES if index % 2 == 0 else reversed(MULTIPLES):
            rate, seconds, bound_s = multiple * rate_per_s, self.settings.seconds, self.settings.bound_s
            load = await self._offer(served, rate, seconds, 10 * index + multiple, deadline_s=bound_s)
            loads[multiple] = load
            self._check(f"goodput at {multiple} x", *kept(load.painted, NUM_SAMPLES))
            self.say(
                f"round {index + 1}, {multiple} x: {load.goodput_per_s(self.settings.bound_s):.2f} images/s in time"
            )
        return loads

    async def _poisson(self, served: Served, rate_per_s: float, seconds: float) -> Verdict:
        if self.measured.with_loadgen:
            verdict = await self._loadgen(SERVER, served, rate_per_s, seconds)
        else:
            load = await self._offer(served, rate_per_s, seconds, scenes=0)
            self._check("server", *kept(load.painted, NUM_SAMPLES))
            num_failed = len(load.answers) - len(load.painted)
            verdict = Verdict(rate_per_s, len(load.painted) / load.seconds, load.p99_s, num_failed, "")
        self.say(f"server at {rate_per_s:.2f}/s: p99 {verdict.p99_s:.2f} s")
        return verdict

    async def _offer(
        self, served: Served, rate_per_s: float, seconds: float, scenes: int, deadline_s: float | None = None
    ) -> Load:
        num = max(1, round(rate_per_s * seconds))
        jobs = _jobs(num, POISSON + scenes, self.measured.steps)
        arrivals_s = poisson_arrivals_within(seconds, num, seed=scenes)
        return await offer(served.address, jobs, arrivals_s, seconds, deadline_s)

    async def _loadgen(self, scenario: str, served: Served, rate_per_s: float, seconds: float) -> Verdict:
        verdict = await run_loadgen(
            scenario,
            served.address,
            steps=self.measured.steps,
            rate_per_s=rate_per_s,
            seconds=seconds,
            bound_s=self.settings.bound_s,
        )
        assert verdict.kept is not None
        self._check(f"LoadGen {scenario}", verdict.jobs, verdict.kept)
        return verdict

    def _check(self, name: str, jobs: Sequence[Painting], outcome: Outcome) -> None:
        """Nothing is compared where every call failed or was refused: such a run neither holds nor has goodput."""
        if jobs:
            fold(self.measured.agreement, name, check_paintings(self.reference, jobs, outcome))


def holds(verdict: Verdict, bound_s: float) -> bool:
    """Whether every call of a run gave an image, and p99 is within the bound."""
    return verdict.p99_s <= bound_s and verdict.num_failed == 0


async def highest(holds: Callable[[float], Awaitable[bool]], low: float, high: float, num_probes: int) -> float | None:
    """The highest of `num_probes` rates that holds, by bisection between `low` and `high`; None when none does."""
    found = None
    for _ in range(num_probes):
        rate = (low + high) / 2
        if await holds(rate):
            found = low = rate
        else:
            high = rate
            low = low if found is not None else low / 2
    return found


def _jobs(num: int, scenes: int, steps: int) -> list[Painting]:
    return [replace(job, steps=steps) for job in paintings(num, scenes)]
