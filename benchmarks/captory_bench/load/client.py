"""An open loop of unary calls: each is sent when it is due, whatever has become of the others, and timed from then."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.workload import Painting
from captory_client.client import Client
from captory_client.errors import ClientError
from captory_proto.v1 import captory_pb2 as pb

REFUSED, EXPIRED = "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"


class Answer(NamedTuple):
    """What one call gave. `due_s` is from the start, the latency from then. `code` is empty for an image."""

    due_s: float
    latency_s: float
    code: str
    job: Painting
    image: pb.ImageResult | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """All answers to calls that were due over `seconds`."""

    seconds: float
    answers: list[Answer] = field(default_factory=list)

    def goodput_per_s(self, bound_s: float) -> float:
        """Images a second that came within the bound; none counts that came after the last call was due."""
        in_time = (
            one for one in self.painted if one.latency_s <= bound_s and one.due_s + one.latency_s <= self.seconds
        )
        return sum(1 for _ in in_time) / self.seconds

    @property
    def refusals_s(self) -> list[float]:
        """How long each refusal took."""
        return [one.latency_s for one in self.answers if one.code == REFUSED]

    @property
    def painted(self) -> list[Answer]:
        """The calls that gave an image."""
        return [one for one in self.answers if one.image is not None]

    def num_late(self, bound_s: float) -> int:
        """Calls that ran out of their time, or whose image came later than the bound."""
        return sum(one.code == EXPIRED or (one.image is not None and one.latency_s > bound_s) for one in self.answers)

    @property
    def num_failed(self) -> int:
        """Calls that gave neither an image nor a refusal, and did not run out of their time."""
        return sum(bool(one.code) and one.code not in (REFUSED, EXPIRED) for one in self.answers)

    @property
    def p99_s(self) -> float:
        """Of the calls that gave an image; infinity when none did."""
        latencies = [one.latency_s for one in self.painted]
        return float(np.percentile(latencies, 99)) if latencies else float("inf")


async def offer(
    address: str,
    jobs: Sequence[Painting],
    arrivals_s: Sequence[float],
    seconds: float,
    deadline_s: float | None = None,
) -> Load:
    """Make the calls, which are due over `seconds`, and wait for all answers, for each at most `deadline_s`."""
    async with Client(address) as client:
        await client.server_info()
        started_s = time.perf_counter()
        pairs = zip(jobs, arrivals_s, strict=True)
        calls = [_call(client, job, at_s, started_s, deadline_s) for job, at_s in pairs]
        return Load(seconds, list(await asyncio.gather(*calls)))


async def _call(client: Client, job: Painting, at_s: float, started_s: float, deadline_s: float | None) -> Answer:
    due_s = started_s + at_s
    await asyncio.sleep(due_s - time.perf_counter())
    if deadline_s is not None:
        deadline_s = max(0.0, due_s + deadline_s - time.perf_counter())
    try:
        [image] = await client.generate(job.prompt, steps=job.steps, seed=job.seed, deadline_s=deadline_s)
    except ClientError as error:
        return Answer(at_s, time.perf_counter() - due_s, error.code, job)
    return Answer(at_s, time.perf_counter() - due_s, "", job, image)


def kept(answers: Sequence[Answer], num: int) -> tuple[list[Painting], Outcome]:
    """Up to `num` of the images, evenly spread, with the paintings that make them again."""
    jobs, outcome = [], Outcome()
    for one in answers[:: max(1, len(answers) // num)][:num]:
        assert one.image is not None
        made = one.image.provenance
        jobs.append(Painting(one.job.id, made.prompt, made.steps, made.seed, made.guidance_scale, made.sampler))
        with Image.open(io.BytesIO(one.image.data)) as image:
            outcome.images[one.job.id] = np.asarray(image.convert("RGB"))
        outcome.prompts[one.job.id] = made.prompt
    return jobs, outcome
