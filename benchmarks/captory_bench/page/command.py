"""`captory bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captory_bench.measuring.command_line import say


def write_page(
    folder: Annotated[Path, typer.Argument(help="What `bench all` wrote.")] = Path("benchmarks/results"),
    page: Annotated[Path, typer.Option(help="Markdown page with the blocks.")] = Path("docs/performance.md"),
    images: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("docs/images"),
) -> None:
    """Write the tables of the performance page anew from a folder of figures, and draw its plots (with matplotlib)."""
    from captory_bench.page.plots import draw_all
    from captory_bench.page.rewrite import read_figures, rewrite, right_ones

    figures = read_figures(folder)
    try:
        blocks = rewrite(page, figures)
        plots = draw_all(right_ones(figures), images)
    except (OSError, ValueError, ImportError) as error:
        typer.echo(f"captory bench report: {error}", err=True)
        raise typer.Exit(1) from None
    say(f"tables: {', '.join(blocks)}; plots: {', '.join(plots)}")
