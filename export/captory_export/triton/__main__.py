"""`python -m captory_export.triton`: a Triton on the CPU that serves a model repository until it is told to stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from captory_engine.errors import CaptoryError
from captory_engine.repository import default_repository
from captory_export.triton.host import triton_server

PORT = 8001


def main(
    repository: Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of its gRPC, on loopback; 0: a free one.")] = PORT,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each model; 0: all CPUs.")] = 0,
) -> None:
    """Serve a model repository with tritonserver. Ctrl-C ends it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with triton_server([repository or default_repository()], num_threads=threads, port=port) as server:
            typer.echo(f"Triton serves at {server.address}; captory serve --backend triton --triton {server.address}")
            code = server.process.wait()
            typer.echo(f"tritonserver ended with exit code {code}", err=True)
    except CaptoryError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        return
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
