"""The subcommands that this package brings to `captory`: `serve` and `models`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

models = typer.Typer(
    help="Look after a model repository.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
Root = Annotated[Path | None, typer.Option("--repository", help="Model repository; the embedded one if not given.")]
OwnRoot = Annotated[Path, typer.Option("--repository", help="Your model repository; never the embedded one.")]


def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    address: Annotated[str | None, typer.Option(help="HOST:PORT on loopback (port 0: any), or unix:PATH.")] = None,
    repository: Annotated[Path | None, typer.Option(help="Model repository; the embedded one if not given.")] = None,
    family: Annotated[str | None, typer.Option(help="Family, or a repository's path; its only one if empty.")] = None,
    modes: Annotated[Path | None, typer.Option(help="Folder of your own instruction files for prompt modes.")] = None,
    backend: Annotated[str | None, typer.Option(help="onnx, tensorrt, torch, triton or fake.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads for the models; 0: all cores.")] = None,
    lanes: Annotated[
        int | None, typer.Option(help="Batches at once, of which each has its threads; 0: as pays.")
    ] = None,
    measure: Annotated[
        bool | None, typer.Option("--measure/--no-measure", help="Measure batch sizes once, at the first start.")
    ] = None,
    torch_device: Annotated[str | None, typer.Option(help="Torch's name of the device; a GPU if there is one.")] = None,
    torch_dtype: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16; by itself bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    torch_compile: Annotated[
        str | None, typer.Option(help="Compile with this mode of torch.compile; by itself not.")
    ] = None,
    torch_graphs: Annotated[
        bool | None, typer.Option("--torch-graphs/--no-torch-graphs", help="CUDA graphs; by itself on a GPU.")
    ] = None,
    torch_checkpoints: Annotated[
        Path | None, typer.Option(help="Root of the checkpoints for torch; a clone's own if not given.")
    ] = None,
    triton: Annotated[str | None, typer.Option(help="HOST:PORT of Triton's gRPC, for the backend triton.")] = None,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime's, with commas, the preferred first; the CPU's if not given.")
    ] = None,
    tensorrt_precision: Annotated[
        str | None, typer.Option(help="fp16, bf16 or graph, of the engines to take; by itself fp16.")
    ] = None,
    tensorrt_engines: Annotated[
        Path | None, typer.Option(help="Root of the engines; the user's cache if not given.")
    ] = None,
    tensorrt_device: Annotated[str | None, typer.Option(help="Torch's name of TensorRT's GPU; by itself cuda.")] = None,
    writer: Annotated[
        str | None, typer.Option(help="Language model on vLLM: vllm://HOST:PORT, or vllm:REF to run one.")
    ] = None,
    captioner: Annotated[
        str | None, typer.Option(help="Vision-language model on vLLM: vllm://HOST:PORT, or vllm:REF to run one.")
    ] = None,
    vllm_max_concurrent: Annotated[int | None, typer.Option(help="Requests at once at one vLLM.")] = None,
    vllm_python: Annotated[
        Path | None, typer.Option(help="Python that has vLLM; CAPTORY_VLLM_PYTHON or .venv-vllm if not given.")
    ] = None,
    vllm_gpu_memory: Annotated[float | None, typer.Option(help="Share of the GPU's memory for vllm:REF.")] = None,
    vllm_arguments: Annotated[
        list[str] | None,
        typer.Option("--vllm-argument", help="Further one of vllm serve, for vllm:REF: --vllm-argument=--NAME=VALUE."),
    ] = None,
    vllm_log: Annotated[Path | None, typer.Option(help="What vllm:REF logs; kept only while it runs else.")] = None,
    max_items: Annotated[int | None, typer.Option(help="Items in flight.")] = None,
    grace_s: Annotated[float | None, typer.Option("--grace", help="Seconds to finish in when told to stop.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Log here, not on stderr.")] = None,
    address_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    parent_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve over gRPC, on this machine only.

    Settings come from the file, the environment (CAPTORY_ADDRESS, CAPTORY_TORCH__DTYPE, …) and these options, the
    later over the earlier.
    """
    from pydantic import ValidationError

    from captory_server.config import explain, load
    from captory_server.logs import configure
    from captory_server.process import run_server

    flags = {"address": address, "repository": repository, "family": family, "backend": backend, "threads": threads}
    rest = {"lanes": lanes, "measure": measure, "grace_s": grace_s, "log_level": log_level, "log_file": log_file}
    rest |= {"providers": providers, "modes": modes, "writer": writer, "captioner": captioner}
    limits = {"max_items": max_items}
    torch = {
        "device": torch_device,
        "dtype": torch_dtype,
        "compile_mode": torch_compile,
        "graphs": torch_graphs,
        "checkpoints": torch_checkpoints,
    }
    tensorrt = {"precision": tensorrt_precision, "engines": tensorrt_engines, "device": tensorrt_device}
    vllm = {
        "max_concurrent": vllm_max_concurrent,
        "python": vllm_python,
        "gpu_memory": vllm_gpu_memory,
        "arguments": vllm_arguments,
        "log_file": vllm_log,
    }
    groups: dict[str, dict[str, Any]] = {"limits": limits, "torch": torch, "tensorrt": tensorrt}
    groups |= {"triton": {"address": triton}, "vllm": vllm}
    try:
        settings = load(config, **{name: _given(group) for name, group in groups.items()}, **flags, **rest)
        configure(settings.log_level, settings.log_file)
    except (ValidationError, OSError) as error:
        for words in explain(error):
            typer.echo(f"captory serve: {words}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run_server(settings, address_fd=address_fd, parent_fd=parent_fd))


def _given(flags: dict[str, Any]) -> dict[str, Any] | None:
    """The flags of one group that were given; None when none was."""
    return {name: value for name, value in flags.items() if value is not None} or None


@models.command("list")
def list_(repository: Root = None) -> None:
    """Print each model and its digest, or `bad`; exit 1 if one is not what its manifest says."""
    from captory_engine.repository import list_models

    with _root(repository) as root:
        names = list_models(root)
        _print_states(root, names)
        if not names:
            typer.echo(f"captory models: {root} has no models", err=True)


@models.command()
def verify(names: Annotated[list[str] | None, typer.Argument()] = None, repository: Root = None) -> None:
    """Check every file of the models NAMES, or of all models, against the recorded digests; exit 1 if one is bad."""
    from captory_engine.repository import list_models

    with _root(repository) as root:
        _print_states(root, names or list_models(root), sound="  ok")


@models.command()
def add(source: Annotated[Path, typer.Argument(help="Folder of the model.")], repository: OwnRoot) -> None:
    """Copy the model folder SOURCE into your repository and record its digests."""
    from captory_engine.repository import add_model

    with _own_root(repository) as root:
        model = add_model(root, source)
        typer.echo(f"{model.name}  {model.digest}")


@models.command()
def remove(name: str, repository: OwnRoot) -> None:
    """Remove the model NAME from your repository."""
    from captory_engine.repository import remove_model

    with _own_root(repository) as root:
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


@contextmanager
def _own_root(repository: Path) -> Iterator[Path]:
    """The root of a repository that may be changed: the embedded one is the package's."""
    from captory_engine.repository import default_repository

    if repository.resolve() == default_repository().resolve():
        typer.echo(f"captory models: {str(repository)!r} is the embedded repository; name one of your own", err=True)
        raise typer.Exit(2)
    with _root(repository) as root:
        yield root


def _print_states(root: Path, names: Iterable[str], sound: str = "") -> None:
    """A line for each model, the reason for each bad one on stderr; exit 1 at the end if there is one."""
    from captory_engine.errors import CaptoryError
    from captory_engine.repository import model_folder, verify_model

    all_sound = True
    for name in names:
        try:
            digest = verify_model(model_folder(root, name))
        except (CaptoryError, OSError) as error:
            all_sound = False
            typer.echo(f"{name}  bad")
            typer.echo(f"captory models: {error}", err=True)
        else:
            typer.echo(f"{name}  {digest}{sound}")
    if not all_sound:
        raise typer.Exit(1)
