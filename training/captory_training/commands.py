"""The subcommand that this package brings to `captory`: `eval`. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from captory_training.evaluation import Evaluation, Settings

evaluate = typer.Typer(help="Measure how good a family is.", no_args_is_help=True)
SHEET_ROWS = 8


@evaluate.callback()
def _evaluate() -> None:
    """Measure how good a family is."""


@evaluate.command()
def picto(
    n: Annotated[int, typer.Option("--n", min=1, max=100_000, help="Fresh scenes.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=9_999, help="Which fresh scenes.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Denoising steps; 0: the family's default.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the family's default if not given.")] = None,
    sampler: Annotated[str, typer.Option(help="Sampler; the family's default if empty.")] = "",
    repository: Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")] = None,
    family: Annotated[str, typer.Option(help="Family name; the repository's only one if empty.")] = "",
    sheet: Annotated[Path | None, typer.Option(help="Draw true picture, caption and painting here (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    backend: Annotated[str, typer.Option(hidden=True)] = "onnx",
) -> None:
    """Caption and paint fresh scenes of the picture world through the server, and read the results back."""
    from captory_training.evaluation import Settings

    root = repository or default_repository()
    made = _run(Settings(root, family, backend, n, seed, steps, guidance, sampler))
    if sheet:
        from captory_training.evaluation_sheet import evaluation_sheet

        evaluation_sheet(made, SHEET_ROWS).save(sheet)
    _print(made, as_json=as_json)


def default_repository() -> Path:
    """The repository that ships with the wheel, or in a checkout the one at its root."""
    packaged = Path(__file__).parents[1] / "captory_engine" / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_repository"


def _run(settings: Settings) -> Evaluation:
    """Evaluate with progress on stderr; what is foreseen to go wrong ends the command with its words."""
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from captory_client.errors import ClientError
    from captory_training.evaluation import REFUSED
    from captory_training.evaluation import evaluate as run

    with Progress(console=Console(stderr=True)) as bars:
        tasks = {stage: bars.add_task(stage, total=settings.num_scenes) for stage in ("caption", "paint")}
        try:
            return asyncio.run(run(settings, lambda stage: bars.advance(tasks[stage])))
        except (ClientError, FileNotFoundError) as error:
            words, code = f"captory eval: {error}", 2 if getattr(error, "code", "") == REFUSED else 1
    typer.echo(words, err=True)
    raise typer.Exit(code)


def _print(made: Evaluation, *, as_json: bool) -> None:
    from rich.console import Console

    from captory_training.evaluation_report import shares_table, shares_values

    if as_json:
        typer.echo(json.dumps(shares_values(made), indent=2))
    else:
        Console().print(shares_table(made))
