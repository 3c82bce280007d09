"""The subcommands that this package brings to `captory`: `bench` and what it measures."""

from __future__ import annotations

from collections.abc import Callable

import typer

from captory_bench.growth.command import growth
from captory_bench.guidance.command import guidance
from captory_bench.kernels.command import kernels
from captory_bench.load.command import load
from captory_bench.orchestrator.command import orchestrator
from captory_bench.page.command import write_page
from captory_bench.peers.command import peers
from captory_bench.profile.command import profile
from captory_bench.serve.command import serve
from captory_bench.sharing.command import sharing
from captory_bench.suite.command import run_suite
from captory_bench.writer.command import writer

COMMANDS: dict[str, Callable[..., None]] = {
    "serve": serve,
    "sharing": sharing,
    "guidance": guidance,
    "load": load,
    "growth": growth,
    "orchestrator": orchestrator,
    "peers": peers,
    "all": run_suite,
    "report": write_page,
    "kernels": kernels,
    "profile": profile,
    "writer": writer,
}

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
for name, command in COMMANDS.items():
    bench.command(name)(command)
