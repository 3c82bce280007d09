"""What a pipeline says of itself: its models, defaults and limits. Resolved values, fixed once it is open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from captory_engine.items import Mode, Parameters


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One loaded model: the sha256 over its manifest, and the backend that runs it."""

    sha256: str
    backend: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one item and of the whole pipeline; what is over them is refused, never queued."""

    max_images: int = 64
    max_steps: int = 200
    max_guidance_scale: float = 30.0
    max_image_bytes: int = 32 << 20
    max_image_pixels: int = 64_000_000
    max_text_bytes: int = 8192
    max_items: int = 256


@dataclass(frozen=True, slots=True)
class FamilyInfo:
    """The family that is served. `in_world_only`: what it makes of real photographs is outside what it learnt.

    `mode_sha256` are the digests of the modes' instruction files. `inexact_modes` are those whose words come from a
    server that does not repeat them.
    """

    name: str
    models: dict[str, ModelInfo]
    defaults: Parameters
    sizes: tuple[tuple[int, int], ...]
    samplers: tuple[str, ...]
    modes: tuple[Mode, ...]
    limits: Limits
    backend: str
    in_world_only: bool
    mode_sha256: Mapping[Mode, str] = field(default_factory=dict)
    inexact_modes: tuple[Mode, ...] = ()
