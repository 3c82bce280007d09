"""Export the embedded family from its checkpoints: what `captory export` writes, and the reader beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from captory_export.families import Wanted, prepare, write_models
from captory_export.picto_reader import export_reader
from captory_export.publishing import published


def main(
    checkpoints: Annotated[Path, typer.Argument(help="the folder of captioner, writer, painter and reader")],
    out: Annotated[Path, typer.Argument(help="the model repository to write")],
) -> None:
    """Export the picture world's family."""
    captioner, writer, painter = (str(checkpoints / role) for role in ("captioner", "writer", "painter"))
    prepared = prepare(Wanted(captioner, writer, painter))
    with published(out, prepared.num_bytes) as root:
        report = write_models(prepared, root, lambda words: typer.echo(words, err=True))
        report["reader"] = export_reader(checkpoints / "reader", root / "picto_reader")
    typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
