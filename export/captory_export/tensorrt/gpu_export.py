"""`python -m captory_export.tensorrt.gpu_export`: engines on this GPU, against ONNX Runtime on the CPU, and timed.

Of the embedded family, and of a denoiser of Stable Diffusion 1.5's size with random weights. Needs the extras `export`
and `tensorrt`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from captory_engine.errors import CaptoryError
from captory_engine.family import find_family
from captory_engine.profiles import measure, record, stages
from captory_engine.repository import ModelFolder, default_repository, open_model
from captory_engine.sessions.base import Session
from captory_engine.sessions.options import SessionOptions, TensorRtOptions
from captory_engine.sessions.registry import open_session
from captory_engine.sessions.tensorrt_plans import Machine
from captory_export.tensorrt.build import build_model, checked_profiles, this_machine
from captory_export.tensorrt.profiles import UNMEASURED, Profile, Span, check_profiles, example

RESULTS = Path("benchmarks") / "results"
ROWS = (1, 2, 3, 8)  # of the batches that are compared
TWIN = "sd15_twin_unet"
# Mean absolute difference from ONNX Runtime on the CPU, over the mean absolute value; `graph`: fp32 with TF32.
TOLERANCES = {"graph": 1e-2, "fp16": 2e-2, "bf16": 8e-2}


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file; by itself named for the GPU.")] = None,
    precision: Annotated[str, typer.Option(help="fp16, bf16 or graph.")] = "fp16",
    device: Annotated[str, typer.Option(help="Torch's name of the GPU.")] = "cuda",
    twin: Annotated[bool, typer.Option("--twin/--no-twin", help="The denoiser of full size, too.")] = True,
) -> None:
    """Build, compare and time; exit 1 where an engine is not what its graph is, 2 without a GPU or TensorRT."""
    with TemporaryDirectory(prefix="captory-gpu-export-") as folder:
        try:
            options = TensorRtOptions(precision, Path(folder) / "engines", device)
            machine = this_machine(options)
        except (CaptoryError, ValueError) as error:
            typer.echo(f"gpu-export: {error}", err=True)
            raise typer.Exit(2) from None
        models = _embedded(options, machine) | (_twin(Path(folder), options, machine) if twin else {})
    passed = all(figures["passed"] for figures in models.values())
    report = {"machine": machine._asdict(), "precision": precision, "passed": passed, "models": models}
    path = out or RESULTS / f"gpu-export-{_slug(machine.gpu)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{path}: {'passed' if passed else 'FAILED'}")
    raise typer.Exit(0 if passed else 1)


def _embedded(options: TensorRtOptions, machine: Machine) -> dict[str, Any]:
    root, family = find_family(default_repository())
    positions = dict(stages(family).values())
    return {
        name: _examined(open_model(root, name), checked_profiles(root, family, name), options, machine, positions[name])
        for name in family.models
    }


def _twin(folder: Path, options: TensorRtOptions, machine: Machine) -> dict[str, Any]:
    from captory_export.tensorrt.twin import write_twin

    write_twin(folder / TWIN)
    model = open_model(folder, TWIN)
    profile = {spec.name: (UNMEASURED, *(Span(size, size, size) for size in spec.shape)) for spec in model.inputs}
    check_profiles([profile], model.model_path)
    return {TWIN: _examined(model, [profile], options, machine)}


def _examined(
    model: ModelFolder, profiles: list[Profile], options: TensorRtOptions, machine: Machine, positions: int = 0
) -> dict[str, Any]:
    """`examine`, or why that could not be: what is wrong with one model keeps no figure of another back."""
    try:
        return examine(model, profiles, options, machine, positions)
    except CaptoryError as error:
        typer.echo(f"{model.name}: {error}", err=True)
        return {"error": str(error), "passed": False}


def examine(
    model: ModelFolder, profiles: list[Profile], options: TensorRtOptions, machine: Machine, positions: int
) -> dict[str, Any]:
    """Figures of one model's engine: what it took to build, how far it is from the graph, how fast it runs."""
    built = build_model(model, profiles, machine, options, lambda words: typer.echo(words, err=True), anew=True)
    engine = open_session("tensorrt", model, SessionOptions(tensorrt=options))
    differences = _compare(model, engine, profiles)
    tolerance = TOLERANCES[options.precision]
    curve = measure(model.name, engine, positions, 1)
    engine.close()
    return {
        "build_s": built.build_s,
        "plan_bytes": built.num_bytes,
        "backend": engine.backend,
        "profiles": built.profiles,
        "relative_difference": differences,
        "tolerance": tolerance,
        "passed": all(value <= tolerance for value in differences.values()),
        "host_arrays_ms_per_row": record(curve)["ms_per_row"],
    }


def _compare(model: ModelFolder, engine: Session, profiles: list[Profile]) -> dict[str, float]:
    """By profile and batch, how far the engine is from the graph on ONNX Runtime's CPU provider."""
    reference = open_session("onnx", model)
    differences = {}
    for number, profile in enumerate(profiles):
        for rows in (rows for rows in ROWS if rows <= engine.max_batch):
            inputs = example(profile, model, rows)
            differences[f"profile {number}, {rows} rows"] = difference(reference.run(inputs), engine.run(inputs))
    reference.close()
    return differences


def difference(wanted: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """The largest, over the outputs, of mean absolute difference over mean absolute value; inf where not finite."""
    shares = [np.abs(found[name] - array).mean() / max(np.abs(array).mean(), 1e-6) for name, array in wanted.items()]
    return float(max(share if np.isfinite(share) else np.inf for share in shares))


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
