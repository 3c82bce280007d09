"""`captory bench writer`: prompts a second by who writes them, and what prompts cost of a whole job.

Two servers stand side by side, alike but for their writer, and one at a time is asked: the other is idle. Rounds are
interleaved; all arms of a round have the same captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import Served
from captory_bench.measuring.stats import Stats
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import WARM_UP, photos
from captory_bench.writer.hosts import NotMeasured, find_writer, hosted, version_of_vllm
from captory_bench.writer.prompting import Written, tasks, write
from captory_client.client import MAX_IN_FLIGHT
from captory_client.errors import ClientError
from captory_proto.v1 import captory_pb2 as pb

EMBEDDED, VLLM = "embedded", "vllm"
ALONE = "one at a time"
ALONE_SHARE = 4  # one at a time, that part of the prompts
FIRST_ROUND = 600  # batches of scenes, counting up
WARM_UP_ITEMS = 16


class Arm(NamedTuple):
    """Whose writer is asked, and how many prompts at once."""

    host: str
    max_in_flight: int

    @property
    def name(self) -> str:
        """For tables."""
        return self.host if self.max_in_flight > 1 else f"{self.host}, {ALONE}"


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


async def measure(settings: Settings, say: Say) -> Measured:
    """Run all arms. Raises `CaptoryError`, `ClientError` or `ArmFailed`."""
    measured = Measured(settings)
    async with AsyncExitStack() as stack:
        hosts = {EMBEDDED: await stack.enter_async_context(hosted(settings.subject))}
        try:
            writer = find_writer(settings.subject, settings.vllm)
            say("starting a server with its writer on vLLM")
            served = await stack.enter_async_context(hosted(settings.subject, writer))
            measured.vllm = await version_of_vllm(served)
            hosts[VLLM] = served
        except (NotMeasured, ClientError) as error:
            say(f"not measured: {VLLM}: {error}")
            measured.not_measured[VLLM] = str(error).partition("\n")[0]
        await _warm_up(settings, hosts)
        for index in range(settings.num_rounds):
            measured.rounds.append(await _round(settings, hosts, index, say))
            measured.jobs.append(await _jobs(settings, hosts, index, say))
    return measured


async def _warm_up(settings: Settings, hosts: Mapping[str, Served]) -> None:
    for place, host in enumerate(hosts.values()):
        await write(host.address, tasks(WARM_UP_ITEMS, WARM_UP, place), MAX_IN_FLIGHT)
        await host.photos(photos(WARM_UP_ITEMS, WARM_UP), settings.steps, pb.MODE_REWRITE)


async def _round(settings: Settings, hosts: Mapping[str, Served], index: int, say: Say) -> dict[str, Written]:
    """All arms once; every other round the other way round."""
    arms = [Arm(host, limit) for host in hosts for limit in (MAX_IN_FLIGHT, 1)]
    written = {}
    for place, arm in list(enumerate(arms))[:: 1 if index % 2 == 0 else -1]:
        num = settings.num_prompts if arm.max_in_flight > 1 else settings.num_prompts // ALONE_SHARE
        wanted = tasks(settings.num_prompts, FIRST_ROUND + index, place)[:num]
        written[arm.name] = await write(hosts[arm.host].address, wanted, arm.max_in_flight)
        say(f"round {index + 1}/{settings.num_rounds}: {arm.name} {written[arm.name].prompts_per_s:.1f} prompts/s")
    return written


async def _jobs(settings: Settings, hosts: Mapping[str, Served], index: int, say: Say) -> dict[str, Job]:
    """The same photographs through every host; every other round the other way round."""
    items = photos(settings.num_photos, FIRST_ROUND + index)
    jobs = {}
    for name in list(hosts)[:: 1 if index % 2 == 0 else -1]:
        before = await hosts[name].stats()
        outcome = await hosts[name].photos(items, settings.steps, pb.MODE_REWRITE)
        jobs[name] = Job(outcome, (await hosts[name].stats()).since(before))
        say(f"round {index + 1}/{settings.num_rounds}: job, {name} {outcome.images_per_s:.2f} images/s")
    return jobs
