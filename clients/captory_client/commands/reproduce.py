"""`captory reproduce`: one image of a dataset again, from its record."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captory_client.commands.exits import SOME_FAILED, explained

if TYPE_CHECKING:
    from captory_client.reproduce import Comparison


def reproduce(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    image_id: Annotated[str, typer.Argument(metavar="ID", help="The image's id.")],
    to: Annotated[Path | None, typer.Option("--to", help="Write the image here.")] = None,
    family: Annotated[str, typer.Option(metavar="NAME|PATH", help="Model family, or a repository of one.")] = "",
    server: Annotated[str | None, typer.Option(metavar="ADDR", help="A running server; else one is started.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Paint one image again from its record.

    It is compared with the dataset's own.

    Exit codes: 0 as promised (the same bytes in exact; in stable, pixels within 2 of 255 levels), 3 not.
    """
    with explained("reproduce"):
        comparison = asyncio.run(_reproduce(out, image_id, family, server))
        if to:
            to.write_bytes(comparison.image)
        typer.echo(json.dumps(_facts(comparison)) if as_json else _words(comparison))
        raise typer.Exit(0 if comparison.kept else SOME_FAILED)


async def _reproduce(out: Path, image_id: str, family: str, server: str | None) -> Comparison:
    from captory_client.reproduce import reproduce
    from captory_client.workshop import Workshop

    async with Workshop(server, ["--family", family] if family else []) as workshop:
        return await reproduce(out, image_id, workshop)


def _facts(comparison: Comparison) -> dict[str, object]:
    return {
        "same_bytes": comparison.same_bytes,
        "same_pixels": comparison.same_pixels,
        "max_difference": comparison.max_difference,
        "determinism": comparison.determinism,
    }


def _words(comparison: Comparison) -> str:
    if comparison.same_bytes:
        return "identical: the same bytes"
    if comparison.same_pixels:
        return "the same pixels, in other bytes"
    return f"different by at most {comparison.max_difference} of 255 levels ({comparison.determinism})"
