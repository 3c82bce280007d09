"""`captory demo`: the main job on the sample that travels with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captory_client.commands.exits import explained

SAMPLE = Path(__file__).parent.parent / "sample"


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo-out"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Run the main job on the shipped sample images."""
    from captory_client.commands.run import work

    with explained("demo"):
        from captory_client.jobs import Run

        raise typer.Exit(work(Run(SAMPLE, out), quiet=quiet, as_json=as_json))
