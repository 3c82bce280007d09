"""How the peers that are servers paint a batch: together whatever its steps, since every row has its own timestep.

An image that has ended leaves the batch; none joins it, and all replies go out when the last is done. Groups of equal
steps one after the other, which the script with diffusers has to make, would be smaller batches. Triton's environment
holds this module too: it imports little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from captory_bench.measuring.denoising import denoise
from captory_bench.measuring.graphs import Graphs, decode_latents, encode_text
from captory_bench.measuring.workload import Painting
from captory_engine.device import StageCounts
from captory_engine.images import encode_image
from captory_engine.items import ImageFormat


def paint_together(graphs: Graphs, jobs: Sequence[Painting], negative: NDArray[Any]) -> list[bytes]:
    """PNGs of one batch of jobs; `negative` are the empty prompt's states, [1, T, D]."""
    text = encode_text(graphs, [job.prompt for job in jobs])
    latents = denoise(graphs, jobs, text, negative, StageCounts(), shrinking=True)
    return [encode_image(pixels, ImageFormat.PNG) for pixels in decode_latents(graphs, latents)]
