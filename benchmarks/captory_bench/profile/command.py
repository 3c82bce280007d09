"""`captory bench profile`."""

from __future__ import annotations

from typing import Annotated

import typer

from captory_bench.measuring.command_line import Result, benchmark, say
from captory_bench.measuring.subject import Subject


@benchmark()
def profile(
    subject: Subject,
    lanes: Annotated[int, typer.Option(min=0, help="Batches at once; 0: as a server would.")] = 0,
) -> Result:
    """Measure every graph alone, milliseconds a row against rows a batch, and keep it for the servers started here."""
    from captory_bench.profile.measure import profile as measure
    from captory_bench.profile.report import profile_tables, summarise
    from captory_engine.assembly import EngineConfig

    curves, kept_at = measure(EngineConfig(*subject, num_lanes=lanes))
    say(f"kept at {kept_at}, for the servers that start from now on")
    return Result(summarise(curves), profile_tables)
