"""How a command ends when it cannot go on: its words on stderr, its exit code (0 done, 1 fatal, 2 usage, 3 some)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

FATAL, SOME_FAILED, INTERRUPTED = 1, 3, 130


def say(words: str, *, quiet: bool = False) -> None:
    """A line for people, beside the results."""
    if not quiet:
        typer.echo(words, err=True)


@contextmanager
def explained(command: str) -> Iterator[None]:
    """Turn what can go wrong into a message and an exit code."""
    from captory_client.errors import ClientError
    from captory_data.errors import DataError

    try:
        yield
    except DataError as error:
        say(f"captory {command}: {error}")
        raise typer.Exit(error.exit_code) from None
    except (ClientError, OSError) as error:
        say(f"captory {command}: {error}")
        raise typer.Exit(FATAL) from None
    except KeyboardInterrupt:
        say(f"captory {command}: stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
