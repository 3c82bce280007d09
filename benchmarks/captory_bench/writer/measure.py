"""`captory bench writer`: prompts a second by who writes them, and what prompts cost of a whole job.

Two servers stand side by side, alike but for their writer, and one at a time is asked: the other is idle. Rounds are
interleaved; all arms of a round have the same captions. A vLLM that fails on the way is left out of all rounds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import ArmFailed, Served
from captory_bench.measuring.stats import Stats
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import WARM_UP, photos
from captory_bench.writer.hosts import NotMeasured, check_embedded, describe_vllm, find_writer, hosted
from captory_bench.writer.prompting import Written, tasks, write
from captory_client.client import MAX_IN_FLIGHT
from captory_client.errors import ClientError
from captory_proto.v1 import captory_pb2 as pb

EMBEDDED, VLLM = "embedded", "vllm"
ALONE = "one at a time"
ALONE_SHARE = 4  # one at a time, that part of the prompts
FIRST_ROUND = 600  # batches of scenes, counting up
WARM_UP_ITEMS = 16
Turn = TypeVar("Turn")


class Arm(NamedTuple):
    """Whose writer is asked, and how many prompts at once."""

    host: str
    max_in_flight: int

    @property
    def name(self) -> str:
        """For tables."""
        return self.host if self.max_in_flight > 1 else f"{self.host}, {ALONE}"


def arms_of(host: str) -> list[Arm]:
    """A host's arms: many prompts at once, and one at a time."""
    return [Arm(host, limit) for limit in (MAX_IN_FLIGHT, 1)]


class Job(NamedTuple):
    """A job of photographs whose captions are rewritten: what came of it, and what the server's device did."""

    outcome: Outcome
    device: Stats


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much. `vllm` is as on the command line."""

    subject: Subject
    num_prompts: int = 256
    num_rounds: int = 3
    num_photos: int = 64
    steps: int = 0  # of the job; 0: the family's default
    vllm: str = ""


@dataclass(slots=True)
class Measured:
    """Everything that came out, by round: runs by arm, jobs by host; and why a host is missing."""

    settings: Settings
    vllm: str = ""
    rounds: list[dict[str, Written]] = field(default_factory=list)
    jobs: list[dict[str, Job]] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)

    def leave_out(self, host: str, why: str) -> None:
        """Drop a host from all rounds: medians and ratios are over the same ones."""
        self.not_measured[host] = why
        names = [arm.name for arm in arms_of(host)]
        self.rounds = [{name: one for name, one in written.items() if name not in names} for written in self.rounds]
        self.jobs = [{name: job for name, job in jobs.items() if name != host} for jobs in self.jobs]


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all arms. Raises `CaptoryError`, `ClientError` or `ArmFailed` when it is the embedded writer that fails."""
    measured = Measured(settings)
    async with hosted(settings.subject) as embedded, AsyncExitStack() as stack:
        await check_embedded(embedded)
        bench = Bench(measured, say, {EMBEDDED: embedded}, stack)
        await bench.open_vllm()
        await bench.warm_up()
        for index in range(settings.num_rounds):
            await bench.round(index)
            await bench.job(index)
    return measured


@dataclass(frozen=True, slots=True)
class Bench:
    """What is under way: the servers that are asked, and the stack that holds the one with its writer on vLLM."""

    measured: Measured
    say: Say
    hosts: dict[str, Served]
    stack: AsyncExitStack

    async def open_vllm(self) -> None:
        """Add the server with its writer on vLLM, or tell why not."""
        settings = self.measured.settings
        async with self._sparing(VLLM):
            writer = find_writer(settings.subject, settings.vllm)
            self.say("starting a server with its writer on vLLM")
            served = await self.stack.enter_async_context(hosted(settings.subject, writer))
            self.measured.vllm = await describe_vllm(served, writer)
            self.hosts[VLLM] = served

    async def warm_up(self) -> None:
        """Some of everything, on scenes that no round has."""
        for place, (name, host) in enumerate(list(self.hosts.items())):
            async with self._sparing(name):
                await write(host.address, tasks(WARM_UP_ITEMS, WARM_UP, place), MAX_IN_FLIGHT)
                await host.photos(photos(WARM_UP_ITEMS, WARM_UP), self.measured.settings.steps, pb.MODE_REWRITE)

    async def round(self, index: int) -> None:
        """All arms once; every other round the other way round."""
        self.measured.rounds.append({})
        arms = [arm for host in self.hosts for arm in arms_of(host)]
        for place, arm in _in_turn(list(enumerate(arms)), index):
            if arm.host in self.hosts:
                async with self._sparing(arm.host):
                    await self._write(index, place, arm)

    async def job(self, index: int) -> None:
        """The same photographs through every host; every other round the other way round."""
        self.measured.jobs.append({})
        for host in _in_turn(list(self.hosts), index):
            async with self._sparing(host):
                await self._paint(index, host)

    async def _write(self, index: int, place: int, arm: Arm) -> None:
        num = self.measured.settings.num_prompts
        wanted = tasks(num, FIRST_ROUND + index, place)[: num if arm.max_in_flight > 1 else num // ALONE_SHARE]
        written = await write(self.hosts[arm.host].address, wanted, arm.max_in_flight)
        self.measured.rounds[index][arm.name] = written
        self._tell(index, f"{arm.name} {written.prompts_per_s:.1f} prompts/s")

    async def _paint(self, index: int, name: str) -> None:
        settings, host = self.measured.settings, self.hosts[name]
        before = await host.stats()
        items = photos(settings.num_photos, FIRST_ROUND + index)
        outcome = await host.photos(items, settings.steps, pb.MODE_REWRITE)
        self.measured.jobs[index][name] = Job(outcome, (await host.stats()).since(before))
        self._tell(index, f"job, {name} {outcome.images_per_s:.2f} images/s")

    def _tell(self, index: int, words: str) -> None:
        self.say(f"round {index + 1}/{self.measured.settings.num_rounds}: {words}")

    @asynccontextmanager
    async def _sparing(self, host: str) -> AsyncIterator[None]:
        """What goes wrong with vLLM leaves it out and ends its server, whose restarts would cost the other its time."""
        try:
            yield
        except (NotMeasured, ArmFailed, ClientError) as error:
            if host == EMBEDDED:
                raise
            why = str(error).partition("\n")[0]
            self.say(f"not measured: {host}: {why}")
            self.measured.leave_out(host, why)
            self.hosts.pop(host, None)
            await self.stack.aclose()


def _in_turn(these: Sequence[Turn], index: int) -> Sequence[Turn]:
    return these if index % 2 == 0 else these[::-1]
