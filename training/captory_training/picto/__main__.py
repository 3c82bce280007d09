"""Draws the world: `python -m captory_training.picto --out sheet.png --captions`, or `--folders DIR` for a data set."""

from pathlib import Path
from typing import Annotated

import typer

from captory_training.picto.sheet import contact_sheet, sample_by_kind, write_class_folders


def main(
    out: Annotated[Path | None, typer.Option(help="Where to write the sheet, a PNG.")] = None,
    folders: Annotated[Path | None, typer.Option(help="Write DIR/<class name>/<kind>-<seed>.png instead.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first scene seed to try.")] = 0,
    rows: Annotated[int, typer.Option(min=1)] = 13,
    columns: Annotated[int, typer.Option(min=1)] = 8,
    captions: Annotated[bool, typer.Option("--captions", help="Write the full caption under each picture.")] = False,
) -> None:
    """Draw sampled scenes, ordered by kind."""
    scenes = sample_by_kind(seed, rows * columns)
    if out:
        contact_sheet(scenes, columns, captions=captions).save(out)
    if folders:
        write_class_folders(scenes, folders)
    if not out and not folders:
        raise typer.BadParameter("say where to write: --out or --folders")


if __name__ == "__main__":
    typer.run(main)
