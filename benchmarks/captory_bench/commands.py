"""The subcommands that this package brings to `captory`: `bench serve` and `bench profile`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
Repository = Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")]
FamilyName = Annotated[str, typer.Option("--family", help="Family name; the repository's only one if empty.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads for the models; 0: all CPUs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Out = Annotated[Path | None, typer.Option(help="Write the JSON object here as well.")]
Backend = Annotated[str, typer.Option(hidden=True)]


@bench.command()
def serve(
    images: Annotated[int, typer.Option(min=4, help="Images an arm and round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the uniform arms; 0: the family's default.")] = 0,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Compare the server with the bare loop and with request-level batching, side by side on the same items.

    Exit 1 when the arms' images do not agree: then the figures compare different work.
    """
    import asyncio

    from captory_bench.comparison import Settings, measure
    from captory_bench.machine import describe_machine
    from captory_bench.report import summarise
    from captory_bench.tables import comparison_tables

    with _told():
        settings = Settings(_root(repository), family, backend, threads, images, rounds, steps)
        figures = summarise(asyncio.run(measure(settings, _say)))
    figures["machine"] = describe_machine(threads)
    _print(figures, None if as_json else comparison_tables(figures), out)
    raise typer.Exit(0 if figures["checks"]["ok"] else 1)


@bench.command()
def profile(
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Measure every graph alone: milliseconds a row against rows a batch."""
    from captory_bench import profiling
    from captory_bench.machine import describe_machine
    from captory_bench.tables import profile_table

    with _told():
        curves = profiling.profile(_root(repository), family, backend=backend, num_threads=threads)
    machine = describe_machine(threads)
    figures = {
        "ms_per_row": {curve.stage: curve.ms_per_row for curve in curves},
        "knee": {curve.stage: curve.knee for curve in curves},
        "models": {curve.stage: curve.model for curve in curves},
        "machine": machine,
    }
    _print(figures, None if as_json else profile_table(curves, machine), out)


def _root(repository: Path | None) -> Path:
    from captory_engine.repository import default_repository

    return repository or default_repository()


def _say(words: str) -> None:
    typer.echo(words, err=True)


def _print(figures: dict[str, Any], tables: Any, out: Path | None) -> None:
    from rich.console import Console

    text = json.dumps(figures, indent=2)
    if out:
        out.write_text(text + "\n")
    if tables is None:
        typer.echo(text)
    else:
        Console().print(tables)


@contextmanager
def _told() -> Iterator[None]:
    """What is foreseen to go wrong ends the command with its words."""
    from captory_bench.served import ArmFailed
    from captory_client.errors import ClientError
    from captory_engine.errors import CaptoryError

    try:
        yield
    except (ArmFailed, ClientError, CaptoryError) as error:
        typer.echo(f"captory bench: {error}", err=True)
        raise typer.Exit(1) from None
