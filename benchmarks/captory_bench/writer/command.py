"""`captory bench writer`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def writer(
    subject: Subject,
    prompts: Annotated[int, typer.Option(min=4, help="Prompts an arm and round; one at a time, a quarter.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    photos: Annotated[int, typer.Option(min=4, help="Photographs of a job with rewritten captions, by round.")] = 64,
    steps: Annotated[int, typer.Option(min=0, help="Steps of that job; 0: the family's default.")] = 0,
    vllm: Annotated[
        str,
        typer.Option(
            metavar="vllm://HOST:PORT|vllm:REF|none",
            help="The writer on vLLM; one that serves the family's own checkpoint is started if empty.",
        ),
    ] = "",
) -> Result:
    """Measure prompts/s of the embedded writer and of one on vLLM, and what prompts cost of a job.

    Where there is no vLLM, or it fails on the way, its arms are named with the reason, and the others go on. Exit 1
    when prompts or images are missing, or when the embedded writer's are worse one at a time; an arm on vLLM that is
    worse is named.
    """
    from captory_bench.writer.measure import Settings, measure
    from captory_bench.writer.report import summarise, writer_tables

    settings = Settings(subject, prompts, rounds, photos, steps, vllm)
    return Result(summarise(asyncio.run(measure(settings, say))), writer_tables)
