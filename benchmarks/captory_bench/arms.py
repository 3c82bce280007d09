"""The arms of `captory bench serve`, each defined in words: what it does is part of what it says."""

from __future__ import annotations

from typing import NamedTuple

from captory_bench.graphs import Graphs
from captory_bench.workload import MIXED_STEPS

BARE_LOOP = "bare_loop"
SERVED_UNIFORM = "served_uniform"
SERVED_MIXED = "served_mixed"
REQUEST_FIXED = "request_fixed"
REQUEST_SHRINKING = "request_shrinking"
REQUEST_GROUPED = "request_grouped"
ARMS = (BARE_LOOP, SERVED_UNIFORM, SERVED_MIXED, REQUEST_FIXED, REQUEST_SHRINKING, REQUEST_GROUPED)


class Definition(NamedTuple):
    """What an arm includes."""

    stages: str
    steps: str
    guidance: str
    batch: str
    transport: str


def define(graphs: Graphs, batch_size: int, steps: int) -> dict[str, Definition]:
    """Every arm's definition for this family and the best fixed batch."""
    defaults = graphs.painter.defaults
    rows = batch_size * (2 if graphs.guided else 1)
    uniform, mixed = str(steps), ", ".join(map(str, MIXED_STEPS))
    guidance = f"{defaults.guidance_scale:g}"
    in_process = "none: one process, arrays in and out"
    served = "gRPC on a Unix socket, encoded images in and out"
    step_level = "step-level: the server's scheduler"
    text_to_image = "text, denoise, autoencoder"

    def fixed(rule: str) -> str:
        return f"{batch_size} images ({rows} denoiser rows), {rule}"

    return {
        BARE_LOOP: Definition(
            f"vision, caption, {text_to_image}", uniform, guidance, fixed("the best of 8, 16, 32"), in_process
        ),
        SERVED_UNIFORM: Definition(
            f"image decoding, vision, caption, {text_to_image}, PNG", uniform, guidance, step_level, served
        ),
        SERVED_MIXED: Definition(f"{text_to_image}, PNG", mixed, guidance, step_level, served),
        REQUEST_FIXED: Definition(
            text_to_image, mixed, guidance, fixed("every row computed until the longest ends"), in_process
        ),
        REQUEST_SHRINKING: Definition(
            text_to_image, mixed, guidance, fixed("rows that have ended leave, none joins"), in_process
        ),
        REQUEST_GROUPED: Definition(text_to_image, mixed, guidance, fixed("equal step counts only"), in_process),
    }
