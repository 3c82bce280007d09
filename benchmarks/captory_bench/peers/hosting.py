"""LitServe and Ray Serve alike: a host module of ours as a child process, told what to serve in one JSON argument."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from captory_bench.peers.children import child, free_port
from captory_bench.peers.contenders import Conditions, PeerUnavailable, PerRequest
from captory_bench.peers.http_client import http_requests
from captory_bench.peers.trial import Setting, best_of, candidates


class Hosting(NamedTuple):
    """What a host is told: the conditions with the threads of one worker, its setting and its port."""

    conditions: Conditions
    setting: Setting
    port: int

    def to_argument(self) -> str:
        """As one argument of a command line."""
        return json.dumps([asdict(self.conditions), self.setting, self.port], default=str)

    @classmethod
    def from_argument(cls, argument: str) -> Hosting:
        """What `to_argument` gave."""
        conditions, setting, port = json.loads(argument)
        conditions = Conditions(**{**conditions, "repository": Path(conditions["repository"]), "weights": None})
        return cls(conditions, Setting(*setting), port)


@asynccontextmanager
async def open_hosted(
    package: str,
    module: str,
    conditions: Conditions,
    *,
    name: str = "",
    together: bool = False,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[PerRequest]:
    """The peer `name`, of a package of that name if it has no other, hosted by `module`, with the best of its settings.

    Raises `PeerUnavailable` when its package is not installed or it does not start.
    """
    if find_spec(package) is None:
        raise PeerUnavailable(f"the package {package} is not installed")
    start = partial(_start, name or package, module, conditions, env or {})
    async with best_of(candidates(conditions.num_threads, together=together), start, conditions.steps) as contender:
        yield contender


@asynccontextmanager
async def _start(
    name: str, module: str, conditions: Conditions, env: Mapping[str, str], setting: Setting
) -> AsyncIterator[PerRequest]:
    port = free_port()
    hosting = Hosting(replace(conditions, num_threads=setting.threads_a_worker), setting, port)
    command = [sys.executable, "-m", module, hosting.to_argument()]
    async with http_requests(port) as requests, child(command, requests.greet, env=env) as server:
        yield PerRequest(name, str(setting), requests, server.cpu_s, server.awake)
