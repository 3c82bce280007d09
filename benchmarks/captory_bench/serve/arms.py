"""The arms of `captory bench serve`, each defined in words: what it does is part of what it says."""

from __future__ import annotations

from typing import NamedTuple

from captory_bench.measuring.bare_loop import BATCH_SIZES, Way
from captory_bench.measuring.workload import MIXED_STEPS, UNGUIDED

BARE_LOOP = "bare_loop"
SERVED_UNIFORM = "served_uniform"
SERVED_MIXED = "served_mixed"
REQUEST_FIXED = "request_fixed"
REQUEST_SHRINKING = "request_shrinking"
REQUEST_GROUPED = "request_grouped"
SERVED_GUIDANCE = "served_mixed_guidance"
FIXED_GUIDANCE = "request_fixed_mixed_guidance"
GROUPED_GUIDANCE = "request_grouped_mixed_guidance"
SINGLE_GUIDANCE = "request_single_mixed_guidance"
UNIFORM = (BARE_LOOP, SERVED_UNIFORM)
MIXED = (SERVED_MIXED, REQUEST_FIXED, REQUEST_SHRINKING, REQUEST_GROUPED)
MIXED_GUIDANCE = (SERVED_GUIDANCE, FIXED_GUIDANCE, GROUPED_GUIDANCE, SINGLE_GUIDANCE)
ARMS = (*UNIFORM, *MIXED, *MIXED_GUIDANCE)


class Definition(NamedTuple):
    """What an arm includes."""

    stages: str
    steps: str
    guidance: str
    batch: str
    transport: str


def define(way: Way, single: Way, steps: int) -> dict[str, Definition]:
    """Every arm's definition for this family and the ways to run fixed batches and images one by one."""
    default = f"{way.crew.graphs.painter.defaults.guidance_scale:g}"
    texts = _batches(way, single)
    work = dict.fromkeys(UNIFORM, (str(steps), default))
    work |= dict.fromkeys(MIXED, (", ".join(map(str, MIXED_STEPS)), default))
    work |= dict.fromkeys(
        MIXED_GUIDANCE, (", ".join(map(str, MIXED_STEPS)), f"half at {UNGUIDED:g}, half at {default}")
    )
    return {name: Definition(_stages(name), *work[name], texts[name], _transport(name)) for name in ARMS}


def _batches(way: Way, single: Way) -> dict[str, str]:
    size, crew = f"{way.batch_size} images", str(way.crew)
    step_level = "step-level: the server's scheduler"
    waits = f"{size}, {crew}; every image computed until the longest ends"
    equal = f"{size}, {crew}; equal step counts only"
    tried = ", ".join(map(str, BATCH_SIZES))
    return {
        BARE_LOOP: f"{size}, {crew}: the best of {tried} images and of one worker with all threads or one for each",
        **dict.fromkeys((SERVED_UNIFORM, SERVED_MIXED, SERVED_GUIDANCE), step_level),
        REQUEST_FIXED: waits,
        REQUEST_SHRINKING: f"{size}, {crew}; images that have ended leave, none joins",
        REQUEST_GROUPED: equal,
        FIXED_GUIDANCE: f"{waits}; where one is guided, both rows for all, as StableDiffusionPipeline does",
        GROUPED_GUIDANCE: f"{equal}, and equally guided or not",
        SINGLE_GUIDANCE: f"1 image, {single.crew}: no batching",
    }


def _stages(name: str) -> str:
    painting = "text, denoise, autoencoder"
    if name in UNIFORM:
        painting = f"vision, caption, {painting}"
    if name == SERVED_UNIFORM:
        painting = f"image decoding, {painting}"
    return f"{painting}, PNG" if _is_served(name) else painting


def _transport(name: str) -> str:
    return (
        "gRPC on a Unix socket, encoded images in and out"
        if _is_served(name)
        else "none: one process, arrays in and out"
    )


def _is_served(name: str) -> bool:
    return name in (SERVED_UNIFORM, SERVED_MIXED, SERVED_GUIDANCE)
