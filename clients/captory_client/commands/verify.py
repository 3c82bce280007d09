"""`captory verify`: whether a dataset is what its ledger says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from captory_client.commands.exits import FATAL, explained


def verify(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check a dataset's files, digests and records."""
    with explained("verify"):
        from dataclasses import asdict

        from captory_data.verify import verify as verify_dataset

        report = verify_dataset(out)
        if as_json:
            typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, default=str))
        else:
            for problem in report.problems:
                typer.echo(f"{problem.path}: {problem.message}")
            typer.echo(f"{report.shards} shards, {report.images} images, {len(report.problems)} problems")
        raise typer.Exit(0 if report.ok else FATAL)
