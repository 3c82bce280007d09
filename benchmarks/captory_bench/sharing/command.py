"""`captory bench sharing`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def sharing(
    subject: Subject,
    images: Annotated[int, typer.Option(min=80, help="Photographs of a bulk job.")] = 256,
    interactive: Annotated[int, typer.Option(min=2, help="Interactive items a round.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the uniform job; 0: the family's default.")] = 0,
) -> Result:
    """Measure how full the device is kept, how interactive items and bulk jobs share it, and what mixed rows waste.

    Exit 1 when sampled images are not those of a plain loop.
    """
    from captory_bench.sharing.measure import Settings, measure
    from captory_bench.sharing.report import sharing_tables, summarise

    settings = Settings(subject, num_images=images, num_interactive=interactive, num_rounds=rounds, steps=steps)
    return Result(summarise(asyncio.run(measure(settings, say))), sharing_tables)
