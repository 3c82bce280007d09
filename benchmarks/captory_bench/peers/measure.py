"""`captory bench peers`: Captory and each peer in pairs, the same items in the same round, one after the other.

A peer is started for its pair alone. It stands still while Captory works, except for Triton, which then only waits for
requests. Scripts (diffusers) run the uniform job, the same with rewritten captions, and prompts of mixed steps; servers
run the uniform job, and mixed prompts under Poisson arrivals at equal p95.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import mean, median
from typing import NamedTuple

from captory_bench.measuring.checks import check_paintings, open_reference
from captory_bench.measuring.outcome import Agreement, Outcome
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import MIXED_STEPS, WARM_UP, Painting, Photo, paintings, photos
from captory_bench.peers.captory import open_captory
from captory_bench.peers.contenders import (
    CAPTORY,
    PEERS,
    Conditions,
    Contender,
    OpenLoopContender,
    PeerUnavailable,
    RewritingContender,
    find_opener,
)
from captory_bench.peers.groups import fewer
from captory_bench.peers.open_loop import Search, capacity_at_p95

# Runs one in so many of the items: the rate of a script that paints one image at a time does not depend on how many.
SLOW_SHARE = {"diffusers-1": 12}
BOUND_FACTOR = 5  # the bound of p95, in times that Captory needs for one image of the most steps alone
SOLO_RUNS = 3
START_LOAD = 0.8  # of the rate that the uniform job lets expect
WAKE_ITEMS = 4
FIRST_SCENES = 2000  # batches of scenes that nothing else of the benchmark has seen


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    conditions: Conditions
    num_images: int = 96
    num_rounds: int = 3
    num_arrivals: int = 160
    max_probes: int = 4
    resolution: float = 0.1
    bound_s: float = 0.0  # of p95; 0: from Captory's own time for one image
    only: tuple[str, ...] = ()  # peers; empty: all


def enlarged(settings: Settings) -> Settings:
    """The same at length: about 20 minutes on two cores."""
    return replace(settings, num_images=128, num_arrivals=400)


class Pair(NamedTuple):
    """Both contenders' outcomes in one round, on the same items or the peer's on some of them."""

    captory: Outcome
    peer: Outcome


@dataclass(slots=True)
class Versus:
    """All that was measured of one peer beside Captory."""

    settings: str
    uniform: list[Pair] = field(default_factory=list)
    mixed: list[Pair] = field(default_factory=list)
    rewritten: list[Pair] = field(default_factory=list)
    references: list[Agreement] = field(default_factory=list)  # of either's rewritten work, by its own prompts
    capacity: dict[str, Search] = field(default_factory=dict)


@dataclass(slots=True)
class Measured:
    """Everything that came out: what was measured of each peer, or why nothing was."""

    settings: Settings
    captory: str = ""
    bound_s: float = 0.0
    peers: dict[str, Versus] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def prompted(items: Sequence[Photo], prompts: Mapping[str, str], steps: int) -> list[Painting]:
    """The photographs that have got a prompt, as what is painted from it."""
    return [Painting(item.id, prompts[item.id], steps, item.seed) for item in items if item.id in prompts]


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all pairs. Raises `CaptoryError`, `ClientError` or `ArmFailed` when it is Captory that fails."""
    measured, scenes = Measured(settings), count(FIRST_SCENES)
    async with open_captory(settings.conditions) as captory:
        measured.captory = captory.settings
        await captory.paint_photos(photos(WAKE_ITEMS, WARM_UP), settings.conditions.steps)
        measured.bound_s = settings.bound_s or BOUND_FACTOR * await _solo_s(captory, scenes)
        say(f"p95 is bound to {measured.bound_s:.2f} s")
        for name in settings.only or PEERS:
            say(f"{name}: starting, with a trial of its settings")
            try:
                async with find_opener(name)(settings.conditions) as peer:
                    measured.peers[name] = await _Match(captory, peer, measured, scenes, say).play()
            except PeerUnavailable as error:
                measured.missing[name] = str(error)
                say(f"{name}: {error}")
    return measured


async def _solo_s(captory: Contender, scenes: Iterator[int]) -> float:
    """Captory's time for one image of the most steps, alone."""
    jobs = [replace(paintings(1, next(scenes))[0], steps=max(MIXED_STEPS)) for _ in range(SOLO_RUNS)]
    return median([(await captory.paint_all([job])).times.wall_s for job in jobs])


@dataclass(frozen=True, slots=True)
class _Match:
    """Captory and one peer."""

    captory: OpenLoopContender
    peer: Contender
    measured: Measured
    scenes: Iterator[int]
    say: Say

    async def play(self) -> Versus:
        """All that there is to measure of the two. Raises `PeerUnavailable` when the peer fails."""
        settings, versus = self.measured.settings, Versus(self.peer.settings)
        for index in range(settings.num_rounds):
            versus.uniform.append(await self._uniform(index))
        if isinstance(self.peer, OpenLoopContender):
            versus.capacity = await self._capacity(self.peer, versus.uniform)
            return versus
        for index in range(settings.num_rounds):
            versus.mixed.append(await self._mixed(index))
        if isinstance(self.peer, RewritingContender) and isinstance(self.captory, RewritingContender):
            await self._rewritten(self.captory, self.peer, versus)
        return versus

    async def _uniform(self, index: int) -> Pair:
        settings = self.measured.settings
        items, steps = photos(settings.num_images, next(self.scenes)), settings.conditions.steps

        async def run(contender: Contender, share: int) -> Outcome:
            return await contender.paint_photos(items[: max(1, len(items) // share)], steps)

        return await self._pair("uniform", index, run)

    async def _mixed(self, index: int) -> Pair:
        jobs = paintings(self.measured.settings.num_images, next(self.scenes))

        async def run(contender: Contender, share: int) -> Outcome:
            return await contender.paint_all(fewer(jobs, len(jobs) // share))

        return await self._pair("mixed", index, run)

    async def _rewritten(self, captory: RewritingContender, peer: RewritingContender, versus: Versus) -> None:
        """Each writer draws in its own way, so either's images are held against a plain loop of the same prompts."""
        conditions, num_images = self.measured.settings.conditions, self.measured.settings.num_images
        subject = Subject(conditions.repository, conditions.family, conditions.backend)
        reference = await asyncio.to_thread(open_reference, subject)
        both = {CAPTORY: captory, peer.name: peer}
        for index in range(self.measured.settings.num_rounds):
            items = photos(num_images, next(self.scenes))

            async def run(contender: Contender, share: int, items: Sequence[Photo] = items) -> Outcome:
                some = items[: max(1, len(items) // share)]
                return await both[contender.name].paint_rewritten(some, conditions.steps)

            versus.rewritten.append(await self._pair("rewritten", index, run))
            for outcome in versus.rewritten[-1]:
                jobs = prompted(items, outcome.prompts, conditions.steps)
                versus.references.append(await asyncio.to_thread(check_paintings, reference, jobs, outcome))

    async def _pair(self, what: str, index: int, run: Callable[[Contender, int], Awaitable[Outcome]]) -> Pair:
        """Both, one after the other; every other round the other way round."""
        outcomes: dict[str, Outcome] = {}
        for contender in (self.captory, self.peer) if index % 2 == 0 else (self.peer, self.captory):
            outcome = await run(contender, SLOW_SHARE.get(contender.name, 1))
            outcomes[contender.name] = outcome
            self.say(f"{self.peer.name}, {what} {index + 1}: {contender.name} {outcome.images_per_s:.2f} images/s")
        return Pair(outcomes[CAPTORY], outcomes[self.peer.name])

    async def _capacity(self, peer: OpenLoopContender, uniform: Sequence[Pair]) -> dict[str, Search]:
        """The searches of both, in turns. They start below the rate that the uniform job lets expect."""
        settings, base = self.measured.settings, paintings(self.measured.settings.num_arrivals, next(self.scenes))
        load = START_LOAD * settings.conditions.steps / mean(MIXED_STEPS)
        start_per_s = {
            CAPTORY: load * median(pair.captory.images_per_s for pair in uniform),
            peer.name: load * median(pair.peer.images_per_s for pair in uniform),
        }

        def jobs_of(_: int) -> list[Painting]:
            fresh = paintings(len(base), next(self.scenes))
            return [replace(job, steps=model.steps) for job, model in zip(fresh, base, strict=True)]

        contenders = {CAPTORY: self.captory, peer.name: peer}
        return await capacity_at_p95(
            contenders,
            jobs_of,
            self.measured.bound_s,
            start_per_s,
            resolution=settings.resolution,
            max_probes=settings.max_probes,
            say=self.say,
        )
