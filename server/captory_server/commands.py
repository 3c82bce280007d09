"""The subcommands that this package brings to `captory`: `serve` and `models`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

models = typer.Typer(
    help="Look after a model repository.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
Root = Annotated[Path | None, typer.Option("--repository", help="Model repository; the embedded one if not given.")]


def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    address: Annotated[str | None, typer.Option(help="HOST:PORT on loopback (port 0: any), or unix:PATH.")] = None,
    repository: Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")] = None,
    family: Annotated[str | None, typer.Option(help="Family, or a repository's path; its only one if empty.")] = None,
    backend: Annotated[str | None, typer.Option(help="onnx, torch or fake.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads for the models; 0: all cores.")] = None,
    lanes: Annotated[
        int | None, typer.Option(help="Batches at once, of which each has its threads; 0: as pays.")
    ] = None,
    measure: Annotated[
        bool | None, typer.Option("--measure/--no-measure", help="Measure batch sizes once, at the first start.")
    ] = None,
    max_items: Annotated[int | None, typer.Option(help="Items in flight.")] = None,
    grace_s: Annotated[float | None, typer.Option("--grace", help="Seconds to finish in when told to stop.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Log here, not on stderr.")] = None,
    address_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    parent_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve over gRPC, on this machine only.

    Settings come from the file, the environment (CAPTORY_ADDRESS, …) and these options, the later over the earlier.
    """
    from pydantic import ValidationError

    from captory_server.config import explain, load
    from captory_server.logs import configure
    from captory_server.process import run_server

    flags = {"address": address, "repository": repository, "family": family, "backend": backend, "threads": threads}
    rest = {"lanes": lanes, "measure": measure, "grace_s": grace_s, "log_level": log_level, "log_file": log_file}
    limits = {"max_items": max_items} if max_items is not None else None
    try:
        settings = load(config, limits=limits, **flags, **rest)
        configure(settings.log_level, settings.log_file)
    except (ValidationError, OSError) as error:
        for words in explain(error):
            typer.echo(f"captory serve: {words}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run_server(settings, address_fd=address_fd, parent_fd=parent_fd))


@models.command("list")
def list_(repository: Root = None) -> None:
    """Print each model and its digest; exit 1 if one is not what its manifest says."""
    from captory_engine.repository import list_models, model_folder, verify_model

    with _root(repository) as root:
        for name in list_models(root):
            typer.echo(f"{name}  {verify_model(model_folder(root, name))}")


@models.command()
def verify(names: Annotated[list[str] | None, typer.Argument()] = None, repository: Root = None) -> None:
    """Check every file of the models NAMES, or of all models, against the recorded digests."""
    from captory_engine.repository import list_models, model_folder, verify_model

    with _root(repository) as root:
        for name in names or list_models(root):
            typer.echo(f"{name}  {verify_model(model_folder(root, name))}  ok")


@models.command()
def add(source: Annotated[Path, typer.Argument(help="Folder of the model.")], repository: Root = None) -> None:
    """Copy the model folder SOURCE into the repository and record its digests."""
    from captory_engine.repository import add_model

    with _root(repository) as root:
        model = add_model(root, source)
        typer.echo(f"{model.name}  {model.digest}")


@models.command()
def remove(name: str, repository: Root = None) -> None:
    """Remove the model NAME."""
    from captory_engine.repository import remove_model

    with _root(repository) as root:
        remove_model(root, name)


@contextmanager
def _root(repository: Path | None) -> Iterator[Path]:
    """The repository's root; what is wrong with it or its models ends the command with the reason."""
    from captory_engine.errors import CaptoryError
    from captory_engine.repository import default_repository

    try:
        yield repository or default_repository()
    except (CaptoryError, OSError) as error:
        typer.echo(f"captory models: {error}", err=True)
        raise typer.Exit(1) from None
