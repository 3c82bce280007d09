"""Draws a contact sheet: `python -m captory_training.picto --out sheet.png --captions`."""

from pathlib import Path
from typing import Annotated

import typer

from captory_training.picto.sheet import contact_sheet, sample_by_kind


def main(
    out: Annotated[Path, typer.Option(help="Where to write the PNG.")],
    seed: Annotated[int, typer.Option(min=0, help="The first scene seed to try.")] = 0,
    rows: Annotated[int, typer.Option(min=1)] = 13,
    columns: Annotated[int, typer.Option(min=1)] = 8,
    captions: Annotated[bool, typer.Option("--captions", help="Write the full caption under each picture.")] = False,
) -> None:
    """Draw sampled scenes, ordered by kind."""
    contact_sheet(sample_by_kind(seed, rows * columns), columns, captions=captions).save(out)


if __name__ == "__main__":
    typer.run(main)
