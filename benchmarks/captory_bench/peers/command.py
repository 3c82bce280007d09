"""`captory bench peers`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def peers(
    subject: Subject,
    images: Annotated[int, typer.Option(min=8, help="Images a contender and round.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the uniform job.")] = 8,
    arrivals: Annotated[int, typer.Option(min=8, help="Images a rate of the open loop.")] = 160,
    only: Annotated[str, typer.Option(help="Peers to run, with commas; all if empty.")] = "",
    p95_bound_s: Annotated[float, typer.Option(min=0.0, help="Of the open loop; 0: five times one image alone.")] = 0.0,
    full: Annotated[bool, typer.Option("--full", help="More images, rounds and rates.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Checkpoints for torch; the clone's if not given.")] = None,
) -> Result:
    """Compare Captory with diffusers, LitServe, Ray Serve and Triton, in pairs on the same items.

    A peer that is not installed is named with the reason, and the others go on. Exit 1 when a peer's images are not
    Captory's.
    """
    from captory_bench.peers.contenders import conditions_for
    from captory_bench.peers.measure import Settings, enlarged, measure
    from captory_bench.peers.report import summarise
    from captory_bench.peers.tables import peer_tables

    repository, family, backend, num_threads = subject
    conditions = conditions_for(repository, family, num_threads, steps, backend, weights)
    settings = Settings(conditions, images, rounds, arrivals, bound_s=p95_bound_s, only=_names(only))
    return Result(summarise(asyncio.run(measure(enlarged(settings) if full else settings, say))), peer_tables)


def _names(words: str) -> tuple[str, ...]:
    from captory_bench.peers.contenders import PEERS

    names = tuple(filter(None, words.split(",")))
    if unknown := [name for name in names if name not in PEERS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose of {', '.join(PEERS)}")
    return names
