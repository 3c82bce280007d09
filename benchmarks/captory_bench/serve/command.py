"""`captory bench serve`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def serve(
    subject: Subject,
    images: Annotated[int, typer.Option(min=4, help="Images an arm and round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the uniform arms; 0: the family's default.")] = 0,
) -> Result:
    """Compare the server with the bare loop and with request-level batching, side by side on the same items.

    Exit 1 when the arms' images do not agree: then the figures compare different work.
    """
    from captory_bench.serve.measure import Settings, measure
    from captory_bench.serve.report import summarise
    from captory_bench.serve.tables import comparison_tables

    settings = Settings(subject, images, rounds, steps)
    return Result(summarise(asyncio.run(measure(settings, say))), comparison_tables)
