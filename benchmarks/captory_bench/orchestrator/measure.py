"""`captory bench orchestrator`: what an item costs when graphs cost next to nothing.

A child server on the `fake` backend and this process as its caller share two CPUs. Everything but the graphs is real:
gRPC on a Unix socket, admission, scheduler, tokenizer, noise, the solver's step, PNG. Every answer is checked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from captory_bench.measuring.machine import cpu_seconds
from captory_bench.measuring.served import photo_items, server_options
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import Photo, photos
from captory_bench.orchestrator.callers import Caller, Heard, by_client, hear, items, one_by_one
from captory_bench.orchestrator.fake_family import fake_repository
from captory_bench.orchestrator.probe import PROBE_FILE
from captory_client.client import Client
from captory_client.local_server import LocalServer

NUM_CPUS = 2
SMALL_PX, LARGE_PX = 16, 64
WARM_UP_ITEMS = 2048  # more than the caches of texts hold
WARM_UP_PHOTOS = 4
WARM_UP_SCENES, SCENES = 400, 401
GROWTH_FULL = (1000, 10_000, 100_000)  # items a stream
RSS_SAMPLES = 50
LARGE, JOB = f"images, {LARGE_PX} px", "uniform job"  # accounts, besides those of arms


class Arm(NamedTuple):
    """How items are sent, and how far they go."""

    caller: Caller
    painted: bool


IMAGES, IMAGES_ALONE = "images", "images, one a message"
PROMPTS, PROMPTS_ALONE = "prompts", "prompts, one a message"
ARMS = {
    IMAGES: Arm(by_client, painted=True),
    IMAGES_ALONE: Arm(one_by_one, painted=True),
    PROMPTS: Arm(by_client, painted=False),
    PROMPTS_ALONE: Arm(one_by_one, painted=False),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much. `subject` is that of the uniform job."""

    subject: Subject
    num_items: int = 4000
    num_rounds: int = 3
    growth: Sequence[int] = GROWTH_FULL
    num_photos: int = 32
    steps: int = 0  # of the uniform job; 0: the family's default


class Run(NamedTuple):
    """One run of one arm."""

    num_items: int
    items_per_s: float
    first_s: float
    server_cpu_s: float
    caller_cpu_s: float

    @property
    def cpu_s(self) -> float:
        """Of both processes, an item."""
        return (self.server_cpu_s + self.caller_cpu_s) / self.num_items


class Account(NamedTuple):
    """Some items: CPU seconds by the server's threads, samples of its event loop, CPU seconds of the caller."""

    num_items: int
    cpu_s: dict[str, float]
    event_loop_samples: dict[str, int]
    caller_cpu_s: float


@dataclass(slots=True)
class Measured:
    """Everything that came out. `rss` are pairs of items done and the server's bytes."""

    settings: Settings
    rounds: list[dict[str, Run]] = field(default_factory=list)
    large: list[Run] = field(default_factory=list)
    growth: list[dict[int, Run]] = field(default_factory=list)
    rss: list[tuple[int, int]] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)
    num_checked: int = 0


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all arms. Raises `ArmFailed` for a wrong answer, `ClientError` or `CaptoryError`."""
    measured = Measured(settings)
    with _few_cpus(), tempfile.TemporaryDirectory() as folder:
        async with _bench(fake_repository(Path(folder) / "small", SMALL_PX), measured) as bench:
            await _rounds(bench, measured, say)
            await _growth(bench, measured, say)
            for name in (IMAGES, PROMPTS):
                await bench.account(name, ARMS[name], settings.num_items)
        async with _bench(fake_repository(Path(folder) / "large", LARGE_PX), measured) as bench:
            measured.large = [await bench.run(ARMS[IMAGES], settings.num_items) for _ in range(settings.num_rounds)]
            await bench.account(LARGE, ARMS[IMAGES], settings.num_items)
    await _uniform_job(measured, say)
    return measured


class Bench:
    """A running server, its probe, and the check of all that it answers."""

    def __init__(self, server: LocalServer, measured: Measured) -> None:
        self._server = server
        self._measured = measured
        self._next = 0
        self.asked: list[tuple[str, int, float]] = []  # accounts: name, items, the caller's CPU seconds

    async def run(self, arm: Arm, num_items: int, progress: Callable[[int], object] = lambda _: None) -> Run:
        """Fresh items, checked outside the clock."""
        source = items(num_items, self._next, painted=arm.painted)
        self._next += num_items
        before_s, own_s = cpu_seconds(self._server.pid), time.process_time()
        heard = await hear(arm.caller(self._server.address, source), progress)
        own_s, server_s = time.process_time() - own_s, cpu_seconds(self._server.pid) - before_s
        self.check(heard, num_items, painted=arm.painted)
        return Run(num_items, num_items / heard.wall_s, heard.first_s, server_s, own_s)

    async def photos(self, wanted: list[Photo], steps: int) -> Heard:
        """Photographs through all stages."""
        return await hear(by_client(self._server.address, photo_items(wanted, steps)), lambda _: None)

    def check(self, heard: Heard, num_items: int, *, painted: bool) -> None:
        """Raise `ArmFailed` for what is wrong."""
        heard.check(num_items, painted=painted)
        self._measured.num_checked += num_items

    async def account(self, name: str, arm: Arm, num_items: int) -> None:
        """One more run, with the probe on. The caller's CPU time has the check in it."""
        async with self.probing(name, num_items):
            await self.run(arm, num_items)

    @asynccontextmanager
    async def probing(self, name: str, num_items: int) -> AsyncIterator[None]:
        """The probe is on."""
        await self._signal(signal.SIGUSR1)
        own_s = time.process_time()
        yield
        self.asked.append((name, num_items, time.process_time() - own_s))
        await self._signal(signal.SIGUSR2)

    async def _signal(self, number: signal.Signals) -> None:
        """Send a signal and wait until the server has dealt with it: two at once come in any order."""
        os.kill(self._server.pid, number)
        async with Client(self._server.address) as client:
            await client.server_info()

    def rss_bytes(self) -> int:
        """Memory of the server."""
        pages = Path(f"/proc/{self._server.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def _bench(repository: Path, measured: Measured) -> AsyncIterator[Bench]:
    async with _probed(server_options(repository, "", "fake", 1), measured) as bench:
        await bench.run(ARMS[IMAGES], WARM_UP_ITEMS)
        yield bench


@asynccontextmanager
async def _probed(options: list[str], measured: Measured) -> AsyncIterator[Bench]:
    """A server whose accounts are read when it has stopped."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "accounts.json"
        command = ("env", f"{PROBE_FILE}={file}", sys.executable, "-m", "captory_bench.orchestrator.probe")
        async with LocalServer(["--log-level", "warning", *options], command=command) as server:
            bench = Bench(server, measured)
            yield bench
        found = json.loads(file.read_text())
    for (name, num_items, caller_s), account in zip(bench.asked, found, strict=True):
        measured.accounts[name] = Account(num_items, account["cpu_s"], account["event_loop_samples"], caller_s)


async def _rounds(bench: Bench, measured: Measured, say: Say) -> None:
    """Every arm once a round, every other round the other way round."""
    for index in range(measured.settings.num_rounds):
        names = list(ARMS) if index % 2 == 0 else list(reversed(ARMS))
        measured.rounds.append({name: await bench.run(ARMS[name], measured.settings.num_items) for name in names})
        speeds = (f"{name} {measured.rounds[-1][name].items_per_s:.0f}/s" for name in ARMS)
        say(f"round {index + 1}/{measured.settings.num_rounds}: {', '.join(speeds)}")


async def _growth(bench: Bench, measured: Measured, say: Say) -> None:
    """Streams of growing length; the server's memory is read during the longest."""
    *shorter, longest = measured.settings.growth
    for _ in range(measured.settings.num_rounds):
        measured.growth.append({num: await bench.run(ARMS[IMAGES], num) for num in shorter})
    marks = {longest * part // RSS_SAMPLES for part in range(1, RSS_SAMPLES + 1)}

    def look(num_done: int) -> None:
        if num_done in marks:
            measured.rss.append((num_done, bench.rss_bytes()))

    say(f"one stream of {longest} items")
    measured.growth[-1][longest] = await bench.run(ARMS[IMAGES], longest, look)


async def _uniform_job(measured: Measured, say: Say) -> None:
    """Real graphs: photographs captioned and painted by the embedded family, with the probe on."""
    settings = measured.settings
    options = server_options(*settings.subject)
    say(f"a uniform job of {settings.num_photos} photographs on {settings.subject.backend}")
    async with _probed(options, measured) as bench:
        await bench.photos(photos(WARM_UP_PHOTOS, WARM_UP_SCENES), settings.steps)
        wanted = photos(settings.num_photos, SCENES)
        async with bench.probing(JOB, len(wanted)):
            heard = await bench.photos(wanted, settings.steps)
        bench.check(heard, len(wanted), painted=True)


@contextmanager
def _few_cpus() -> Iterator[None]:
    """This process and its children keep to `NUM_CPUS` CPUs, where the system lets them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:NUM_CPUS])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
