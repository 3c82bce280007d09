"""The subcommand that this package brings to `captory`: `export`."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from captory_export.precision import Precision

EXTRA = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors")
EXTRA_OF_LORA = ("peft",)


def export(
    captioner: Annotated[str, typer.Option(help="Checkpoint: org/name@revision, or a folder.")],
    painter: Annotated[str, typer.Option(help="Checkpoint: a folder of one of diffusers' pipelines.")],
    out: Annotated[Path, typer.Option(help="The model repository to write; it must not be there yet.")],
    writer: Annotated[str, typer.Option(help="Checkpoint of a language model; none if empty.")] = "",
    lora: Annotated[list[str] | None, typer.Option(help="PATH[:scale], merged into the painter; repeatable.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of weights; inputs and outputs stay fp32.")] = Precision.FP32,
    sizes: Annotated[str, typer.Option(help="WIDTHxHEIGHT, with commas; the checkpoint's own if empty.")] = "",
    name: Annotated[str, typer.Option(help="The family's name; the painter's if empty.")] = "",
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Graphs and TensorRT engines for this GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")] = False,
) -> None:
    """Export checkpoints to a model repository that captory serve, and Triton, can host.

    Every graph is compared with its checkpoint, and all of them together; past the tolerance nothing is written.
    """
    _need(EXTRA)
    _hush()
    from captory_engine.errors import CaptoryError
    from captory_export.families import Wanted, export_family, parse_sizes
    from captory_export.lora import Lora

    try:
        loras = tuple(Lora.parse(text) for text in lora or [])
        _need(EXTRA_OF_LORA if loras else ())
        if tensorrt:
            _check_engines(precision)
        wanted = Wanted(captioner, writer, painter, loras, precision, parse_sizes(sizes), name, for_cpu=not tensorrt)
        with _terminable():
            report = export_family(wanted, out, lambda words: typer.echo(words, err=True))
        typer.echo(json.dumps(report, indent=2)) if as_json else _show(report, out)
        if tensorrt:
            _build_engines(out)
    except (CaptoryError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@contextmanager
def _terminable() -> Iterator[None]:
    """Who is told to end takes away what it has begun, as after an error, however often it is told."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _need(modules: Sequence[str]) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        typer.echo(f"captory export needs {', '.join(missing)}: pip install 'captory[export]'", err=True)
        raise typer.Exit(2)


def _hush() -> None:
    """Leave our own words alone on the screen: what the libraries say concerns who writes them."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()


def _check_engines(precision: Precision) -> None:
    """Raise `BadModel` where no engines could be built of the export: before it, since it takes long."""
    from captory_engine.errors import BadModel
    from captory_engine.sessions.options import TensorRtOptions
    from captory_export.tensorrt.build import this_machine

    if precision is Precision.INT8:
        words = "TensorRT does not know the nodes of --precision int8; its engines are fp16 by themselves."
        raise BadModel("ONNX_UNSUPPORTED", words)
    this_machine(TensorRtOptions())


def _build_engines(repository: Path) -> None:
    from captory_export.tensorrt.build import build_family

    build_family(repository, lambda words: typer.echo(words, err=True))


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("graph", "precision", title=f"{out}: served by captory serve --repository {out}")
    for heading in ("largest difference", "mean", "cosine"):
        table.add_column(heading, justify="right")
    for role, parts in report.items():
        for suffix, figures in parts.items():
            if suffix != "end_to_end":
                numbers = (figures[key] for key in ("max_abs_difference", "mean_abs_difference", "cosine"))
                table.add_row(f"{role} {suffix}", figures["precision"], *(f"{number:.3g}" for number in numbers))
    Console().print(table)
    for role, parts in report.items():
        words = ", ".join(f"{key} {value}" for key, value in parts["end_to_end"].items())
        typer.echo(f"{role}, from end to end: {words}")
