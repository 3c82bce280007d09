"""What the commands of all benchmarks share: their options, and how figures are printed, kept and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from captory_bench.measuring.subject import Subject

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Out = Annotated[Path | None, typer.Option(help="Write the JSON object here as well.")]


class Result(NamedTuple):
    """The figures of a benchmark, and what makes tables of them once they have the machine as well."""

    figures: dict[str, Any]
    tables: Callable[[dict[str, Any]], Any]


def benchmark(*, without: Collection[str] = ()) -> Callable[[Callable[..., Result]], Callable[..., None]]:
    """Make a command of a function `(subject, its own options) -> Result`, with the shared options `without` some.

    It exits with 1 when what was timed was wrong, and with words when something foreseen goes wrong.
    """
    shared = [option for option in signature(_shared, eval_str=True).parameters.values() if option.name not in without]

    def decorate(run: Callable[..., Result]) -> Callable[..., None]:
        _, *own = signature(run, eval_str=True).parameters.values()

        @wraps(run)
        def command(*, out: Path | None, as_json: bool, **options: Any) -> None:
            with _told():
                subject = _subject(options)
                result = run(subject, **options)
            _finish(result, subject.num_threads, out, as_json=as_json)

        command.__signature__ = Signature([*own, *shared])  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def _shared(
    repository: Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")] = None,
    family: Annotated[str, typer.Option("--family", help="Family name; the repository's only one if empty.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads for the models; 0: all CPUs.")] = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Annotated[str, typer.Option(hidden=True)] = "onnx",
) -> None:
    """The options of every benchmark."""


def _subject(options: dict[str, Any]) -> Subject:
    """Take the subject out of the options. A benchmark without the option runs one thread."""
    from captory_engine.repository import default_repository

    repository = options.pop("repository") or default_repository()
    return Subject(repository, options.pop("family", ""), options.pop("backend", "onnx"), options.pop("threads", 1))


def say(words: str) -> None:
    """Tell how it goes, on stderr."""
    typer.echo(words, err=True)


def show(figures: dict[str, Any], tables: Any, out: Path | None = None) -> None:
    """Print the tables, or the figures as JSON where there are none, and keep the figures."""
    from rich.console import Console

    text = json.dumps(figures, indent=2)
    if out:
        out.write_text(text + "\n")
    if tables is None:
        typer.echo(text)
    else:
        Console().print(tables)


def _finish(result: Result, num_threads: int, out: Path | None, *, as_json: bool) -> None:
    """Print and keep the figures, with the machine. Exit 1 when what was timed was wrong."""
    from captory_bench.measuring.machine import describe_machine

    figures = result.figures | {"machine": describe_machine(num_threads)}
    show(figures, None if as_json else result.tables(figures), out)
    raise typer.Exit(0 if figures.get("checks", {"ok": True})["ok"] else 1)


@contextmanager
def _told() -> Iterator[None]:
    """What is foreseen to go wrong ends the command with its words."""
    from captory_bench.measuring.served import ArmFailed
    from captory_client.errors import ClientError
    from captory_engine.errors import CaptoryError

    try:
        yield
    except (ArmFailed, ClientError, CaptoryError) as error:
        typer.echo(f"captory bench: {error}", err=True)
        raise typer.Exit(1) from None
