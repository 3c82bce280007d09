"""ONNX to a serialised TensorRT engine on this GPU: TensorRT's own builder and nothing else.

For TensorRT 10 and 11. Networks are strongly typed (11 knows no others), so the graph's types are the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorrt as trt
import torch

from captory_engine.errors import BadModel
from captory_engine.sessions.tensorrt import LISTENER
from captory_engine.sessions.tensorrt_plans import replacing
from captory_export.tensorrt.profiles import Profile

MAX_CACHE_BYTES = 1 << 30


def build_plan(graph: Path, profiles: Sequence[Profile], timing_cache: Path, device: str) -> bytes:
    """Build an engine of an ONNX file, whose external data lies beside it, for the GPU of torch's name `device`.

    Kernels that the timing cache knows are not timed again; it is renewed. Raises `BadModel` where TensorRT takes not
    the graph, or finds no kernels for it, with what TensorRT says.
    """
    with torch.cuda.device(device):  # TensorRT builds for the one that is current
        return _build(graph, profiles, timing_cache)


def _build(graph: Path, profiles: Sequence[Profile], timing_cache: Path) -> bytes:
    builder = trt.Builder(LISTENER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt.OnnxParser(network, LISTENER), graph)
    config = builder.create_builder_config()
    for profile in profiles:
        _add(builder, config, profile)
    _use_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    words = LISTENER.told()  # of kernels that found no memory, too, which is no failure
    if plan is None:
        raise BadModel("ENGINE_BUILD", f"TensorRT {trt.__version__} builds no engine of {str(graph)!r}: {words}.")
    _keep_cache(config, timing_cache)
    return bytes(plan)


def _parse(parser: Any, graph: Path) -> None:
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        words = "; ".join(errors[:3]) or "it does not say why"
        raise BadModel("ONNX_UNSUPPORTED", f"TensorRT {trt.__version__} does not take {str(graph)!r}: {words}.")


def _add(builder: Any, config: Any, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for name, spans in profile.items():
        shapes.set_shape(name, *zip(*spans, strict=True))
    if config.add_optimization_profile(shapes) < 0:
        raise BadModel("PROFILE", f"TensorRT {trt.__version__} does not take the profile {profile}.")


def _use_cache(config: Any, path: Path) -> None:
    """Of another GPU or TensorRT it would be refused; then, as without one, all kernels are timed."""
    known = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_CACHE_BYTES else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_cache(config: Any, path: Path) -> None:
    with replacing(path) as draft:
        draft.write_bytes(bytes(config.get_timing_cache().serialize()))
