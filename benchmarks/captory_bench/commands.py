"""The subcommands that this package brings to `captory`: `bench` and what it measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
Repository = Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")]
FamilyName = Annotated[str, typer.Option("--family", help="Family name; the repository's only one if empty.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads for the models; 0: all CPUs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Out = Annotated[Path | None, typer.Option(help="Write the JSON object here as well.")]
Backend = Annotated[str, typer.Option(hidden=True)]


@bench.command()
def serve(
    images: Annotated[int, typer.Option(min=4, help="Images an arm and round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the uniform arms; 0: the family's default.")] = 0,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Compare the server with the bare loop and with request-level batching, side by side on the same items.

    Exit 1 when the arms' images do not agree: then the figures compare different work.
    """
    import asyncio

    from captory_bench.comparison import Settings, measure
    from captory_bench.report import summarise
    from captory_bench.tables import comparison_tables

    with _told():
        settings = Settings(_root(repository), family, backend, threads, images, rounds, steps)
        figures = summarise(asyncio.run(measure(settings, _say)))
    _finish(figures, comparison_tables, threads, out, as_json=as_json)


@bench.command()
def sharing(
    images: Annotated[int, typer.Option(min=80, help="Photographs of a bulk job.")] = 256,
    interactive: Annotated[int, typer.Option(min=2, help="Interactive items a round.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the uniform job; 0: the family's default.")] = 0,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Measure how full the device is kept, how interactive items and bulk jobs share it, and what mixed rows waste.

    Exit 1 when sampled images are not those of a plain loop.
    """
    import asyncio

    from captory_bench.sharing import Settings, measure
    from captory_bench.sharing_report import sharing_tables, summarise

    sizes = {"num_images": images, "num_interactive": interactive, "num_rounds": rounds, "steps": steps}
    with _told():
        settings = Settings(_root(repository), family, backend, threads, **sizes)
        figures = summarise(asyncio.run(measure(settings, _say)))
    _finish(figures, sharing_tables, threads, out, as_json=as_json)


@bench.command()
def guidance(
    images: Annotated[int, typer.Option(min=4, help="Images an interval and round.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; speeds are their medians, quality is over all.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="512 images an interval and round.")] = False,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Compare guidance at some noise levels only with guidance at all: images/s, and what the oracle reads in them."""
    import asyncio

    from captory_bench.guidance import FULL_IMAGES, Settings, measure
    from captory_bench.guidance_report import guidance_tables, summarise

    with _told():
        settings = Settings(_root(repository), family, backend, threads, FULL_IMAGES if full else images, rounds)
        figures = summarise(asyncio.run(measure(settings, _say)))
    _finish(figures, guidance_tables, threads, out, as_json=as_json)


@bench.command()
def load(
    bound: Annotated[float, typer.Option(min=0.01, help="Seconds within which p99 must stay.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of a run.")] = 12.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of goodput.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of an image; 0: the family's default.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="600 s for the runs that are reported, 60 s for others.")
    ] = False,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Run MLPerf's offline and server scenarios, and offer more than can be done.

    With mlcommons-loadgen where it is installed. Exit 1 when an image is wrong.
    """
    import asyncio

    from captory_bench.load import FULL_SECONDS, Settings, measure
    from captory_bench.load_report import load_tables, summarise

    seconds, final_seconds = (FULL_SECONDS / 10, FULL_SECONDS) if full else (seconds, seconds)
    with _told():
        settings = Settings(
            _root(repository), family, backend, threads, bound, seconds, final_seconds, num_rounds=rounds, steps=steps
        )
        figures = summarise(settings, asyncio.run(measure(settings, _say)))
    _finish(figures, load_tables, threads, out, as_json=as_json)


@bench.command()
def growth(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 2,
    images: Annotated[str, typer.Option(help="Numbers of images to try, with commas.")] = "64,256",
    steps: Annotated[int, typer.Option(min=0, help="Where they are not varied; 0: the family's default.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="64, 512 and 4,096 images, 512 a point of the others.")] = False,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Measure what an image costs as there are more of them, more steps, more clients."""
    import asyncio

    from captory_bench.growth import FULL_IMAGES, FULL_SWEEP, Settings, measure
    from captory_bench.growth_report import growth_tables, summarise

    sizes = FULL_IMAGES if full else tuple(map(int, images.split(",")))
    with _told():
        settings = Settings(_root(repository), family, backend, threads, sizes, num_rounds=rounds, other_steps=steps)
        settings = replace(settings, num_sweep=FULL_SWEEP) if full else settings
        figures = summarise(asyncio.run(measure(settings, _say)))
    _finish(figures, growth_tables, threads, out, as_json=as_json)


@bench.command()
def orchestrator(
    items: Annotated[int, typer.Option(min=64, help="Items an arm and round.")] = 4000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    photos: Annotated[int, typer.Option(min=4, help="Photographs of the uniform job.")] = 32,
    full: Annotated[bool, typer.Option("--full", help="Streams of up to 100,000 items.")] = False,
    repository: Repository = None,
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Measure all but the graphs: items/s over one stream on two CPUs with the fake backend, cost, memory and shares.

    Exit 1 when an answer is wrong.
    """
    import asyncio

    from captory_bench.orchestrator import GROWTH_FULL, Settings, measure
    from captory_bench.orchestrator_report import orchestrator_tables, summarise

    with _told():
        growth = GROWTH_FULL if full else (items // 4, items, 4 * items)
        settings = Settings(_root(repository), backend, items, rounds, growth, photos, num_threads=threads)
        figures = summarise(asyncio.run(measure(settings, _say)))
    _finish(figures, orchestrator_tables, threads, out, as_json=as_json)


@bench.command()
def peers(
    images: Annotated[int, typer.Option(min=8, help="Images a contender and round.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the uniform job.")] = 8,
    arrivals: Annotated[int, typer.Option(min=8, help="Images a rate of the open loop.")] = 160,
    only: Annotated[str, typer.Option(help="Peers to run, with commas; all if empty.")] = "",
    p95_bound_s: Annotated[float, typer.Option(min=0.0, help="Of the open loop; 0: five times one image alone.")] = 0.0,
    full: Annotated[bool, typer.Option("--full", help="More images, rounds and rates.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Checkpoints for torch; the clone's if not given.")] = None,
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Compare Captory with diffusers, LitServe, Ray Serve and Triton, in pairs on the same items.

    A peer that is not installed is named with the reason, and the others go on. Exit 1 when a peer's images are not
    Captory's.
    """
    import asyncio

    from captory_bench.contenders import conditions_for
    from captory_bench.peers.measure import Settings, enlarged, measure
    from captory_bench.peers.report import summarise
    from captory_bench.peers.tables import peer_tables

    with _told():
        conditions = conditions_for(_root(repository), family, threads, steps, backend, weights)
        settings = Settings(conditions, images, rounds, arrivals, bound_s=p95_bound_s, only=_names(only))
        figures = summarise(asyncio.run(measure(enlarged(settings) if full else settings, _say)))
    _finish(figures, peer_tables, threads, out, as_json=as_json)


@bench.command("all")
def all_(
    out: Annotated[Path, typer.Option(help="Folder for every part's JSON and tables.")] = Path("build/bench"),
    full: Annotated[bool, typer.Option("--full", help="Long sweeps and runs instead of small sizes.")] = False,
    only: Annotated[str, typer.Option(help="Only these parts, with commas.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run every benchmark, one after the other, and print one table of all targets.

    Small sizes take less than 40 minutes on two cores. Exit 1 when a part fails; a target that is missed is no failure.
    """
    from captory_bench.suite import PARTS, run_all
    from captory_bench.suite_report import summarise, summary_tables, write

    wanted = only.split(",") if only else [part.name for part in PARTS]
    if unknown := set(wanted) - {part.name for part in PARTS}:
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}", param_hint="--only")
    ran = run_all(out, full=full, say=_say, parts=[part for part in PARTS if part.name in wanted])
    figures = summarise(ran, full=full)
    write(figures, out)
    _print(figures, None if as_json else summary_tables(figures), None)
    raise typer.Exit(0 if all(one.exit_code == 0 for one in ran) else 1)


@bench.command("report")
def report_(
    folder: Annotated[Path, typer.Argument(help="What `bench all` wrote.")] = Path("benchmarks/results"),
    page: Annotated[Path, typer.Option(help="Markdown page with the blocks.")] = Path("docs/performance.md"),
    images: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("docs/images"),
) -> None:
    """Write the tables of the performance page anew from a folder of figures, and draw its plots (with matplotlib)."""
    from captory_bench.pages import read_figures, rewrite, right_ones
    from captory_bench.plots import draw_all

    figures = read_figures(folder)
    try:
        blocks = rewrite(page, figures)
        plots = draw_all(right_ones(figures), images)
    except (OSError, ValueError, ImportError) as error:
        typer.echo(f"captory bench report: {error}", err=True)
        raise typer.Exit(1) from None
    _say(f"tables: {', '.join(blocks)}; plots: {', '.join(plots)}")


@bench.command()
def kernels(
    rows: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are their medians.")] = 5,
    scenes: Annotated[int, typer.Option(min=0, help="Scenes to caption in int8 and fp32; 0: no int8.")] = 512,
    repository: Repository = None,
    family: FamilyName = "",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Measure each graph's GFLOP/s against the machine's matrix multiplication, and int8 against fp32.

    Exit 1 when a graph's outputs are not those of the same graph without ONNX Runtime's optimisations.
    """
    from captory_bench.kernels import Settings, measure
    from captory_bench.kernels_int8 import compare
    from captory_bench.kernels_report import kernel_tables

    with _told():
        figures = measure(Settings(_root(repository), family, rows, rounds), _say)
        sizes = {"num_scenes": scenes, "num_rows": rows, "num_rounds": rounds}
        figures["int8"] = compare(_root(repository), family, **sizes) if scenes else {"missing": "no scenes asked for"}
    _finish(figures, kernel_tables, 1, out, as_json=as_json)


@bench.command()
def profile(
    repository: Repository = None,
    family: FamilyName = "",
    threads: Threads = 0,
    lanes: Annotated[int, typer.Option(min=0, help="Batches at once; 0: as a server would.")] = 0,
    out: Out = None,
    as_json: AsJson = False,
    backend: Backend = "onnx",
) -> None:
    """Measure every graph alone, milliseconds a row against rows a batch, and keep it for the servers started here."""
    from captory_bench.machine import describe_machine
    from captory_bench.profiling import profile as measure
    from captory_bench.tables import profile_table
    from captory_engine.assembly import EngineConfig
    from captory_engine.profiles import record

    with _told():
        curves, kept_at = measure(EngineConfig(_root(repository), family, backend, threads, lanes))
    machine = describe_machine(threads)
    figures = {"curves": {stage: record(curve) for stage, curve in curves.items()}, "machine": machine}
    _say(f"kept at {kept_at}, for the servers that start from now on")
    _print(figures, None if as_json else profile_table(curves, machine), out)


def _root(repository: Path | None) -> Path:
    from captory_engine.repository import default_repository

    return repository or default_repository()


def _names(words: str) -> tuple[str, ...]:
    from captory_bench.contenders import PEERS

    names = tuple(filter(None, words.split(",")))
    if unknown := [name for name in names if name not in PEERS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose of {', '.join(PEERS)}")
    return names


def _say(words: str) -> None:
    typer.echo(words, err=True)


def _print(figures: dict[str, Any], tables: Any, out: Path | None) -> None:
    from rich.console import Console

    text = json.dumps(figures, indent=2)
    if out:
        out.write_text(text + "\n")
    if tables is None:
        typer.echo(text)
    else:
        Console().print(tables)


def _finish(
    figures: dict[str, Any], tables: Callable[[dict[str, Any]], Any], threads: int, out: Path | None, *, as_json: bool
) -> None:
    """Print and keep the figures. Exit 1 when what was timed was wrong."""
    from captory_bench.machine import describe_machine

    figures["machine"] = describe_machine(threads)
    _print(figures, None if as_json else tables(figures), out)
    raise typer.Exit(0 if figures["checks"]["ok"] else 1)


@contextmanager
def _told() -> Iterator[None]:
    """What is foreseen to go wrong ends the command with its words."""
    from captory_bench.served import ArmFailed
    from captory_client.errors import ClientError
    from captory_engine.errors import CaptoryError

    try:
        yield
    except (ArmFailed, ClientError, CaptoryError) as error:
        typer.echo(f"captory bench: {error}", err=True)
        raise typer.Exit(1) from None
