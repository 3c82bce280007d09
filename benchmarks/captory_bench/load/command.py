"""`captory bench load`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def load(
    subject: Subject,
    bound: Annotated[float, typer.Option(min=0.01, help="Seconds within which p99 must stay.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of a run.")] = 12.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of goodput.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of an image; 0: the family's default.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="600 s for the runs that are reported, 30 s for others.")
    ] = False,
) -> Result:
    """Run MLPerf's offline and server scenarios, and offer more than can be done.

    With mlcommons-loadgen where it is installed. Exit 1 when an image is wrong.
    """
    from captory_bench.load.measure import FULL_SECONDS, Settings, measure
    from captory_bench.load.report import load_tables, summarise

    seconds, final_seconds = (FULL_SECONDS / 20, FULL_SECONDS) if full else (seconds, seconds)
    settings = Settings(subject, bound, seconds, final_seconds, num_rounds=rounds, steps=steps)
    return Result(summarise(settings, asyncio.run(measure(settings, say))), load_tables)
