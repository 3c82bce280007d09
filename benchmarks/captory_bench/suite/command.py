"""`captory bench all`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captory_bench.measuring.command_line import AsJson, say, show


def run_suite(
    out: Annotated[Path, typer.Option(help="Folder for every part's JSON and tables.")] = Path("build/bench"),
    full: Annotated[bool, typer.Option("--full", help="Long sweeps and runs instead of small sizes.")] = False,
    only: Annotated[str, typer.Option(help="Only these parts, with commas.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run every benchmark, one after the other, and print one table of all targets.

    Small sizes take less than 40 minutes on two cores. Exit 1 when a part fails; a target that is missed is no failure.
    """
    from captory_bench.suite.report import summarise, summary_tables, write
    from captory_bench.suite.run import PARTS, run_all

    wanted = only.split(",") if only else [part.name for part in PARTS]
    if unknown := set(wanted) - {part.name for part in PARTS}:
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}", param_hint="--only")
    ran = run_all(out, full=full, say=say, parts=[part for part in PARTS if part.name in wanted])
    figures = summarise(ran, full=full)
    write(figures, out)
    show(figures, None if as_json else summary_tables(figures))
    raise typer.Exit(0 if all(one.exit_code == 0 for one in ran) else 1)
