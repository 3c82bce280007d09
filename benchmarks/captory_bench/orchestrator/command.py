"""`captory bench orchestrator`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark(without=("family",))
def orchestrator(
    subject: Subject,
    items: Annotated[int, typer.Option(min=64, help="Items an arm and round.")] = 4000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    photos: Annotated[int, typer.Option(min=4, help="Photographs of the uniform job.")] = 32,
    full: Annotated[bool, typer.Option("--full", help="Streams of up to 100,000 items.")] = False,
) -> Result:
    """Measure all but the graphs: items/s over one stream on two CPUs with the fake backend, cost, memory and shares.

    Exit 1 when an answer is wrong.
    """
    from captory_bench.orchestrator.measure import GROWTH_FULL, Settings, measure
    from captory_bench.orchestrator.report import orchestrator_tables, summarise

    growth = GROWTH_FULL if full else (items // 4, items, 4 * items)
    settings = Settings(subject, items, rounds, growth, photos)
    return Result(summarise(asyncio.run(measure(settings, say))), orchestrator_tables)
