"""The `captory` command. Its subcommands are entry points of `captory.commands`, loaded only when they are called."""

from __future__ import annotations

import ast
import logging
import os
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

GROUP = "captory.commands"
ORDER = ("demo", "run", "reproduce", "verify", "serve", "models", "export", "bench", "eval")
LogLevel = StrEnum("LogLevel", ["debug", "info", "warning", "error"])


class LazyCommands(TyperGroup):
    """Lists every subcommand without importing any."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names: the main job first, then the others by alphabet."""
        names = {point.name for point in entry_points(group=GROUP)}
        return [name for name in ORDER if name in names] + sorted(names - set(ORDER))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The subcommand, imported only if it is being called and not merely listed."""
        point = next(iter(entry_points(group=GROUP, name=cmd_name)), None)
        if point is None:
            return None
        if ctx.invoked_subcommand is None:
            return TyperCommand(cmd_name, help=first_line(point))
        return _load(point)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Called for the one that is to run."""
        ctx.invoked_subcommand = args[0]
        return super().resolve_command(ctx, args)


def first_line(point: EntryPoint) -> str:
    """The first line of a subcommand's words, read from its module's source: a docstring, or a group's `help`."""
    spec = find_spec(point.module)
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        match node:
            case ast.FunctionDef(name=point.attr):
                return (ast.get_docstring(node) or "").partition("\n")[0]
            case ast.Assign(targets=[ast.Name(id=point.attr)], value=ast.Call(keywords=keywords)):
                return next((ast.literal_eval(word.value) for word in keywords if word.arg == "help"), "")
    return ""


def _load(point: EntryPoint) -> Any:
    try:
        command = point.load()
    except ModuleNotFoundError as error:
        typer.echo(f"captory {point.name} needs {error.name}, which is not installed", err=True)
        raise typer.Exit(2) from None
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(point.name)(command)
    return typer.main.get_command(alone)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"captory {version('captory')}")
        raise typer.Exit


app = typer.Typer(cls=LazyCommands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def captory(
    log_level: Annotated[LogLevel | None, typer.Option(help="How much to log.  [default: warning]")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Log here, not on stderr.")] = None,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Real images to captions to prompts to images to a training-ready dataset."""
    given = {"CAPTORY_LOG_LEVEL": log_level, "CAPTORY_LOG_FILE": log_file and log_file.absolute()}
    os.environ.update({name: str(value) for name, value in given.items() if value})  # for a server that this one starts
    level = (log_level or LogLevel.warning).upper()
    try:
        logging.basicConfig(level=level, filename=log_file, format="%(asctime)s %(levelname)s %(message)s")
    except OSError as error:
        typer.echo(f"captory: --log-file {log_file}: {error.strerror}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command."""
    app()
