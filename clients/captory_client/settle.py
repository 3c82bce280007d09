"""What a job's parameters are when not all were given, and whether a server can work with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from captory_client.wire import mode_to_wire
from captory_data.errors import SpecError
from captory_data.spec import JobSpec
from captory_proto.v1 import captory_pb2 as pb

DEFAULTS = {"mode": "cip", "seed": 0}
MAX_SEED = 2**53 - 1


def settle(asked: Mapping[str, Any], stored: JobSpec | None, info: pb.ServerInfo | None) -> JobSpec:
    """Each parameter as it was asked for, else as the output was made, else the server's or the general default.

    Raises `SpecError` for a value that is none.
    """
    if stored is not None:
        base = asdict(stored)
    else:
        assert info is not None, "a new output needs a server's defaults"
        base = DEFAULTS | server_defaults(info)
    spec = JobSpec(**base | {name: value for name, value in asked.items() if value is not None})
    if not 0 <= spec.seed <= MAX_SEED:
        raise SpecError(f"seed: must be from 0 to {MAX_SEED}, not {spec.seed}")
    return spec


def server_defaults(info: pb.ServerInfo) -> dict[str, Any]:
    """The defaults of the server's family, by the names of a `JobSpec`."""
    defaults = info.defaults
    names = ("steps", "guidance_scale", "sampler", "width", "height")
    return {"family": info.family, **{name: getattr(defaults, name) for name in names}}


def check(spec: JobSpec, info: pb.ServerInfo) -> None:
    """Raises `SpecError` for parameters that this server would refuse for every item."""
    limits, sizes = info.limits, [(size.width, size.height) for size in info.sizes]
    _among("family", spec.family, [info.family])
    _among("sampler", spec.sampler, list(info.samplers))
    _among("mode", mode_to_wire(spec.mode), list(info.modes), spec.mode)
    if spec.determinism == "exact" and mode_to_wire(spec.mode) in info.inexact_modes:
        raise SpecError(f"determinism: {spec.mode} has words of a vLLM server, which does not repeat them exactly")
    _among("size", (spec.width, spec.height), sizes, f"{spec.width}x{spec.height}")
    _within("steps", spec.steps, 1, limits.max_steps)
    _within("guidance", spec.guidance_scale, 0, limits.max_guidance_scale)
    _within("negative prompt (bytes)", len(spec.negative_prompt.encode()), 0, limits.max_text_bytes)


def parse_size(text: str | None) -> dict[str, int]:
    """`64` or `64x48` as width and height in pixels; nothing for nothing."""
    if text is None:
        return {}
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    if match is None:
        raise SpecError(f"size: {text!r} is neither a number of pixels nor WIDTHxHEIGHT")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def _among(name: str, value: object, allowed: list[Any], shown: object = None) -> None:
    if value not in allowed:
        words = ", ".join("x".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in allowed)
        raise SpecError(f"{name}: the server has not {shown or value}; it has {words}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SpecError(f"{name}: must be from {low:g} to {high:g}, not {value:g}")
