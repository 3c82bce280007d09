"""Which shapes an engine is made for: from the family's sizes, its caches, and the batches that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captory_engine.engines.token_decoder import LEAST_PAST
from captory_engine.errors import BadModel
from captory_engine.family import Family
from captory_engine.profiles import Curve, cache_path, load, stages
from captory_engine.repository import ModelFolder
from captory_engine.sessions.base import TensorSpec


class Span(NamedTuple):
    """The sizes of one axis: TensorRT takes any from `min` to `max`, and chooses its kernels for `opt`."""

    min: int
    opt: int
    max: int


Profile = dict[str, tuple[Span, ...]]  # by input, a span for each axis, the batch's first
UNMEASURED = Span(1, 8, 16)  # rows, where nothing was measured
MEASURED_ON = ("tensorrt", "torch")  # backends of the same GPU, the nearest first
OF_ONNX_RUNTIME = "com.microsoft"  # the domain of nodes that it alone knows


def profiles_of(model: ModelFolder, family: Family, rows: Span) -> list[Profile]:
    """The profiles of a family's model, those of few shapes first.

    A token decoder has one for decoding and one for prefill. Raises `BadModel` for an axis that nothing explains.
    """
    positions = next(cache for name, cache in stages(family).values() if name == model.name)
    return [
        {spec.name: (rows, *_sizes(spec, kinds, model.name)) for spec in model.inputs}
        for kinds in (_of_cache(positions) if positions else [_of_image(family)])
    ]


def rows_of(curve: Curve | None, max_batch: int) -> Span:
    """Rows a batch: best at the knee of the curve, at most what was measured, or twice that where it still paid."""
    if curve is None:
        _, opt, most = UNMEASURED
    else:
        opt, largest = curve.knee, max(curve.ms_per_row)
        most = 2 * largest if opt == largest else largest
    return Span(1, min(opt, max_batch), min(most, max_batch))


def measured_curves(family: Family) -> dict[str, Curve]:
    """By model, what this user's profiles say of a GPU: a hint, so those of other builds do as well."""
    known: dict[str, Curve] = {}
    for backend in MEASURED_ON:
        known = {curve.model: curve for curve in load(cache_path(family.name, backend, 1))} | known
    return known


def check_profiles(profiles: Sequence[Profile], path: Path) -> None:
    """Raise `BadModel` unless the ONNX graph takes every shape of the profiles, and has nodes that TensorRT may know.

    Axes of one name have one size, and fixed axes their own.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    unknown = sorted({node.op_type for node in graph.node if node.domain == OF_ONNX_RUNTIME})
    if unknown:
        words = f"{', '.join(unknown)} in the graph {str(path)!r}, as --precision int8 makes it: export without"
        raise BadModel("ONNX_UNSUPPORTED", f"TensorRT does not know {words}.")
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.input if value.name not in weights}
    for profile in profiles:
        wrong = _mismatch(profile, inputs)
        if wrong:
            raise BadModel("PROFILE", f"The graph {str(path)!r} does not take the profile's shapes: {wrong}.")


def example(profile: Profile, model: ModelFolder, rows: int) -> dict[str, NDArray[Any]]:
    """Made-up inputs of a profile's best shapes, always the same; integers fit any vocabulary and any cache."""
    rng = np.random.default_rng(rows)
    made: dict[str, NDArray[Any]] = {}
    for spec in model.inputs:
        shape = (rows, *(span.opt for span in profile[spec.name][1:]))
        if np.issubdtype(spec.dtype, np.integer):
            made[spec.name] = rng.integers(1, 16, shape).astype(spec.dtype)
        else:
            values = rng.random(shape) * 999 if len(shape) == 1 else rng.standard_normal(shape)
            made[spec.name] = values.astype(spec.dtype)
    return made


def _mismatch(profile: Profile, inputs: Mapping[str, Sequence[object]]) -> str:
    """What keeps a graph from taking a profile; empty where nothing does."""
    if profile.keys() != inputs.keys():
        return f"its inputs are {sorted(inputs)}, not {sorted(profile)}"
    spans: dict[str, Span] = {}
    for name, axes in inputs.items():
        if len(axes) != len(profile[name]):
            return f"{name} has {len(axes)} axes, not {len(profile[name])}"
        for axis, span in zip(axes, profile[name], strict=True):
            known = _declared(axis, spans, span)
            if known != span:
                return f"{name} has an axis of {tuple(known)}, not {tuple(span)}"
    return ""


def _declared(axis: object, spans: dict[str, Span], span: Span) -> Span:
    """What the graph says of an axis, as far as it says anything: a size, or the name of another axis' size."""
    size, name = getattr(axis, "dim_value", 0), getattr(axis, "dim_param", "")
    if size:
        return Span(size, size, size)
    return spans.setdefault(name, span) if name else span


Kinds = Mapping[str, Sequence[Span]]  # free axes in their order: of caches, and of everything else


def _of_image(family: Family) -> Kinds:
    """Latents of every size that the painter offers, best at the first."""
    factor, sizes = family.painter.vae_scale_factor, family.painter.sizes
    heights, widths = ([size[axis] // factor for size in sizes] for axis in (1, 0))
    return {"other": [Span(min(values), values[0], max(values)) for values in (heights, widths)]}


def _of_cache(positions: int) -> list[Kinds]:
    """One new token over a past of any length, best where it is full; then a prefix of any length.

    The token decoder rounds lengths up to powers of two, of which the past alone is cut off at the table's end.
    """
    least, longest = min(LEAST_PAST, positions), 1 << (positions - 1).bit_length()
    past = [Span(least, positions, positions)]
    return [
        {"past": past, "other": [Span(1, 1, 1)]},
        {"past": past, "other": [Span(1, min(16, longest), longest)]},
    ]


def _sizes(spec: TensorSpec, kinds: Kinds, model: str) -> list[Span]:
    free = kinds.get("past" if spec.name.startswith("past_") else "other", ())
    if spec.shape.count(-1) not in (0, len(free)):
        raise BadModel("PROFILE", f"Model {model!r}: nothing says how large the free axes of {spec.name!r} are.")
    spans = iter(free)
    return [next(spans) if size == -1 else Span(size, size, size) for size in spec.shape]
