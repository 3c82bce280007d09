"""The subcommand that this package brings to `captory`: `eval`. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from captory_training.evaluation import Settings

evaluate = typer.Typer(help="Measure how good a family is.", no_args_is_help=True)
SHEET_ROWS = 8
NUM_SCENES, NUM_SCENES_A_SEED, NUM_SEEDS = 512, 256, 5
Made = TypeVar("Made")


@evaluate.callback()
def _evaluate() -> None:
    """Measure how good a family is."""


@evaluate.command()
def picto(
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, max=100_000, help="Fresh scenes.  [default: 512; with --names 256 a seed]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=9_999, help="Which fresh scenes.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Denoising steps; 0: the family's default.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the family's default if not given.")] = None,
    sampler: Annotated[str, typer.Option(help="Sampler; the family's default if empty.")] = "",
    repository: Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")] = None,
    family: Annotated[str, typer.Option(help="Family name; the repository's only one if empty.")] = "",
    sheet: Annotated[Path | None, typer.Option(help="Draw true picture, caption and painting here (PNG).")] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Compare raw and curated class names, alone and with captions, instead.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=10, help="Seeds of --names, from --seed on.  [default: 5]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    backend: Annotated[str, typer.Option(hidden=True)] = "onnx",
) -> None:
    """Caption and paint fresh scenes of the picture world through the server, and read the results back."""
    from captory_training.evaluation import Settings

    num = n or (NUM_SCENES_A_SEED if names else NUM_SCENES)
    settings = Settings(repository or default_repository(), family, backend, num, seed, steps, guidance, sampler)
    if names:
        _compare_names(settings, seeds or NUM_SEEDS, sheet, as_json=as_json)
    elif seeds:
        raise typer.BadParameter("seeds are of --names", param_hint="--seeds")
    else:
        _evaluate_family(settings, sheet, as_json=as_json)


def _evaluate_family(settings: Settings, sheet: Path | None, *, as_json: bool) -> None:
    from captory_training.evaluation import evaluate as run
    from captory_training.evaluation_report import shares_table, shares_values

    num = settings.num_scenes
    made = _run(lambda progress: run(settings, progress), {"caption": num, "paint": num})
    if sheet:
        from captory_training.evaluation_sheet import evaluation_sheet

        evaluation_sheet(made, SHEET_ROWS).save(sheet)
    _print(shares_values(made), None if as_json else shares_table(made))


def _compare_names(settings: Settings, num_seeds: int, sheet: Path | None, *, as_json: bool) -> None:
    from captory_training.evaluation import MAX_SEED
    from captory_training.evaluation_names import ARMS, MAX_SCENES, POLYSEMOUS, compare
    from captory_training.evaluation_names_report import names_table, names_values

    if sheet:
        raise typer.BadParameter("--names draws no sheet", param_hint="--sheet")
    if not len(POLYSEMOUS) <= settings.num_scenes <= MAX_SCENES:
        raise typer.BadParameter(f"--names takes {len(POLYSEMOUS)} to {MAX_SCENES} scenes a seed", param_hint="--n")
    if settings.seed + num_seeds - 1 > MAX_SEED:
        raise typer.BadParameter(f"the last of {num_seeds} seeds is above {MAX_SEED}", param_hint="--seed")
    num = settings.num_scenes * num_seeds
    totals = {"caption": num, "paint": len(ARMS) * num}
    trials = _run(lambda progress: compare(settings, num_seeds, progress), totals)
    _print(names_values(trials), None if as_json else names_table(trials))


def default_repository() -> Path:
    """The repository that ships with the wheel, or in a checkout the one at its root."""
    packaged = Path(__file__).parents[1] / "captory_engine" / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_repository"


def _run(run: Callable[[Callable[[str], object]], Coroutine[Any, Any, Made]], totals: Mapping[str, int]) -> Made:
    """Evaluate with progress on stderr; what is foreseen to go wrong ends the command with its words."""
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from captory_client.errors import ClientError
    from captory_training.evaluation import REFUSED

    with Progress(console=Console(stderr=True)) as bars:
        tasks = {stage: bars.add_task(stage, total=total) for stage, total in totals.items()}
        try:
            return asyncio.run(run(lambda stage: bars.advance(tasks[stage])))
        except (ClientError, FileNotFoundError) as error:
            words, code = f"captory eval: {error}", 2 if getattr(error, "code", "") == REFUSED else 1
    typer.echo(words, err=True)
    raise typer.Exit(code)


def _print(values: dict[str, Any], table: Any) -> None:
    """The table, or the values as JSON where there is none."""
    from rich.console import Console

    if table is None:
        typer.echo(json.dumps(values, indent=2))
    else:
        Console().print(table)
