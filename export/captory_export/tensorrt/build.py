"""The engines of a family: graphs typed, profiled, built for this GPU and kept where the `tensorrt` backend looks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from captory_engine.errors import BadModel
from captory_engine.family import Family, find_family
from captory_engine.repository import ModelFolder, open_model
from captory_engine.sessions.options import TensorRtOptions
from captory_engine.sessions.tensorrt_plans import (
    TIMING_CACHE,
    Key,
    Machine,
    Record,
    Shapes,
    engines_root,
    load_plan,
    machine_folder,
    save_plan,
)
from captory_export.conversions import to_bf16, to_fp16
from captory_export.tensorrt.profiles import (
    Profile,
    Span,
    check_profiles,
    example,
    measured_curves,
    profiles_of,
    rows_of,
)

CONVERSIONS: dict[str, Callable[[Path], None]] = {"fp16": to_fp16, "bf16": to_bf16}
HALVES = (10, 16)  # TensorProto.FLOAT16 and BFLOAT16

Say = Callable[[str], object]


def build_family(
    repository: Path, say: Say, *, family: str = "", options: TensorRtOptions | None = None, anew: bool = False
) -> list[Record]:
    """An engine for each model of a family; what was built of the same with the same shapes is kept, unless `anew`.

    Raises `BadModel` for a repository, a graph or a machine that does not allow it, and `OSError`.
    """
    options = options or TensorRtOptions()
    machine = this_machine(options)
    located = find_family(repository, family)
    profiles = {name: checked_profiles(located.root, located.family, name) for name in located.family.models}
    return [
        build_model(open_model(located.root, name), shapes, machine, options, say, anew=anew)
        for name, shapes in profiles.items()
    ]


def checked_profiles(root: Path, family: Family, name: str) -> list[Profile]:
    """The profiles of one model of a family, all of which its graph takes: no GPU is needed. Raises `BadModel`."""
    model = open_model(root, name)
    profiles = profiles_of(model, family, rows_of(measured_curves(family).get(name), model.max_batch))
    check_profiles(profiles, model.model_path)
    return profiles


def build_model(
    model: ModelFolder,
    profiles: Sequence[Profile],
    machine: Machine,
    options: TensorRtOptions,
    say: Say,
    *,
    anew: bool = False,
) -> Record:
    """The engine of one model; see `build_family`."""
    root, key = engines_root(options.engines), Key.of(model, machine, options.precision)
    shapes = [{name: _shapes(spans) for name, spans in profile.items()} for profile in profiles]
    known = None if anew else _known(root, key)
    if known is not None and known.profiles == shapes:
        say(f"{model.name}: its engine is there")
        return known
    say(f"{model.name}: building an engine for {machine.gpu}, {options.precision}")
    started_s = time.monotonic()
    with typed(model, options.precision, example(profiles[-1], model, 1), say) as graph:
        plan = _plan(graph, profiles, machine_folder(root, key) / TIMING_CACHE, options.device)
    record = save_plan(root, key, plan, shapes, build_s=time.monotonic() - started_s)
    say(f"{model.name}: {record.num_bytes / 1e6:.1f} MB in {record.build_s:.0f} s")
    return record


def _plan(graph: Path, profiles: Sequence[Profile], timing_cache: Path, device: str) -> bytes:
    from captory_export.tensorrt.network import build_plan

    return build_plan(graph, profiles, timing_cache, device)


@contextmanager
def typed(model: ModelFolder, precision: str, inputs: Mapping[str, NDArray[Any]], say: Say) -> Iterator[Path]:
    """The model's graph in the types of `precision`: itself, or a copy that lasts as long as the block.

    A graph with half or quantised types in it stays as it was exported, and one whose values for these inputs come near
    what fp16 can hold stays fp32.
    """
    if precision not in CONVERSIONS or _is_typed(model.model_path):
        yield model.model_path
        return
    with TemporaryDirectory(prefix="captory-tensorrt-") as folder:
        graph = shutil.copytree(model.model_path.parent, Path(folder) / "graph") / model.model_path.name
        if precision == "fp16" and not _fits_fp16(graph, inputs):
            say(f"{model.name}: its values do not fit fp16, so it stays fp32; bf16 would hold them")
        else:
            CONVERSIONS[precision](graph)
        yield graph


def _fits_fp16(graph: Path, inputs: Mapping[str, NDArray[Any]]) -> bool:
    from captory_export.activations import fits_fp16  # needs onnx-ir, and engines of typed graphs do not

    return fits_fp16(graph, inputs)


def _is_typed(path: Path) -> bool:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    quantised = any(node.op_type == "QuantizeLinear" for node in graph.node)
    return quantised or any(tensor.data_type in HALVES for tensor in graph.initializer)


def _known(root: Path, key: Key) -> Record | None:
    try:
        return load_plan(root, key)[1]
    except BadModel:
        return None


def _shapes(spans: Sequence[Span]) -> Shapes:
    least, best, largest = ([getattr(span, end) for span in spans] for end in Span._fields)
    return least, best, largest


def this_machine(options: TensorRtOptions) -> Machine:
    """This machine. Raises `BadModel` where torch, TensorRT or the GPU is missing."""
    try:
        from captory_engine.sessions.tensorrt import this_machine as machine_of
    except ModuleNotFoundError as error:
        words = f"Engines need the module {error.name!r}: pip install 'captory[tensorrt]', where an NVIDIA GPU is."
        raise BadModel("BACKEND_MISSING", words) from error
    return machine_of(options.device)
