"""`captory bench guidance`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def guidance(
    subject: Subject,
    images: Annotated[int, typer.Option(min=4, help="Images an interval and round.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; speeds are their medians, quality is over all.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="512 images an interval and round.")] = False,
) -> Result:
    """Compare guidance at some noise levels only with guidance at all: images/s, and what the oracle reads in them."""
    from captory_bench.guidance.measure import FULL_IMAGES, Settings, measure
    from captory_bench.guidance.report import guidance_tables, summarise

    settings = Settings(subject, FULL_IMAGES if full else images, rounds)
    return Result(summarise(asyncio.run(measure(settings, say))), guidance_tables)
