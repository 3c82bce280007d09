"""`python -m captory_server`: what `captory serve` does, for a parent that has no `captory` on its path."""

import typer

from captory_server.commands import serve

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(serve)

if __name__ == "__main__":
    app()
