"""`python -m captory_server`: what `captory serve` does, for a parent that has no `captory` on its path."""

import typer

from captory_server.commands import serve

if __name__ == "__main__":
    typer.run(serve)
