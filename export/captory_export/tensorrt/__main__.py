"""`python -m captory_export.tensorrt REPOSITORY`: engines, on this GPU, for a repository that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captory_engine.errors import CaptoryError
from captory_engine.family import find_family
from captory_engine.sessions.options import TensorRtOptions
from captory_export.tensorrt.build import build_family, checked_profiles
from captory_export.tensorrt.profiles import Span


def main(
    repository: Annotated[Path, typer.Argument(help="Model repository.")],
    family: Annotated[str, typer.Option(help="Family; the only one if empty.")] = "",
    precision: Annotated[str, typer.Option(help="fp16, bf16, or graph: the graph's own types.")] = "fp16",
    engines: Annotated[Path | None, typer.Option(help="Root of the engines; the user's cache if not given.")] = None,
    device: Annotated[str, typer.Option(help="Torch's name of the GPU.")] = "cuda",
    anew: Annotated[bool, typer.Option("--anew", help="Build what is there already, too.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print the shapes and check the graphs; needs no GPU.")
    ] = False,
) -> None:
    """Build an engine for each model of a family."""
    try:
        if check:
            _print_profiles(repository, family)
        else:
            options = TensorRtOptions(precision, engines, device)
            build_family(repository, _say, family=family, options=options, anew=anew)
    except (CaptoryError, OSError, ValueError) as error:
        typer.echo(f"captory_export.tensorrt: {error}", err=True)
        raise typer.Exit(1) from None


def _say(words: str) -> None:
    typer.echo(words, err=True)


def _print_profiles(repository: Path, family: str) -> None:
    """A line for each input of each profile: the least, best and largest size of every axis."""
    located = find_family(repository, family)
    for name in located.family.models:
        for number, profile in enumerate(checked_profiles(located.root, located.family, name)):
            for tensor, spans in profile.items():
                typer.echo(f"{name}  profile {number}  {tensor}  {' x '.join(map(_words, spans))}")


def _words(span: Span) -> str:
    return str(span.opt) if span.min == span.max else "/".join(map(str, span))


if __name__ == "__main__":
    typer.run(main)
