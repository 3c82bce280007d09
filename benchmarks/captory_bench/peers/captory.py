"""Captory itself: a child server and the real client over gRPC, as in `captory bench serve`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import Served, server_options, serving
from captory_bench.measuring.workload import Painting, Photo
from captory_bench.peers.contenders import CAPTORY, Conditions
from captory_proto.v1 import captory_pb2 as pb


@dataclass(frozen=True, slots=True)
class Captory:
    """A running server as a contender."""

    served: Served
    settings: str
    name: str = CAPTORY

    async def paint_all(self, jobs: Sequence[Painting]) -> Outcome:
        """Send all prompts as bulk work."""
        return await self.served.paintings(jobs)

    async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """Send all photographs."""
        return await self.served.photos(photos, steps)

    async def paint_rewritten(self, photos: Sequence[Photo], steps: int) -> Outcome:
        """Send all photographs, their captions to be rewritten by the writer."""
        return await self.served.photos(photos, steps, pb.MODE_REWRITE)

    async def open_loop(self, jobs: Sequence[Painting], arrivals_s: Sequence[float]) -> Outcome:
        """Send each prompt when it is due, as interactive work."""
        return await self.served.open_loop(jobs, arrivals_s)


@asynccontextmanager
async def open_captory(conditions: Conditions) -> AsyncIterator[Captory]:
    """Start a server with its defaults: it has nothing to be tried out by hand."""
    options = server_options(conditions.repository, conditions.family, conditions.backend, conditions.num_threads)
    async with serving(options) as served:
        yield Captory(served, f"gRPC on a Unix socket, {conditions.num_threads} threads, defaults otherwise")
