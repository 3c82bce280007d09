"""`captory bench growth`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def growth(
    subject: Subject,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 2,
    images: Annotated[str, typer.Option(help="Numbers of images to try, with commas.")] = "64,256",
    steps: Annotated[int, typer.Option(min=0, help="Where they are not varied; 0: the family's default.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="64, 512 and 4,096 images, 256 a point of the others.")] = False,
) -> Result:
    """Measure what an image costs as there are more of them, more steps, more clients."""
    from captory_bench.growth.measure import FULL_IMAGES, FULL_SWEEP, Settings, measure
    from captory_bench.growth.report import growth_tables, summarise

    sizes = FULL_IMAGES if full else tuple(map(int, images.split(",")))
    settings = Settings(subject, sizes, num_rounds=rounds, other_steps=steps)
    settings = replace(settings, num_sweep=FULL_SWEEP) if full else settings
    return Result(summarise(asyncio.run(measure(settings, say))), growth_tables)
