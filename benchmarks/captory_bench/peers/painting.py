"""How the peers that are servers paint a batch that they have made.

A pipeline takes one number of steps and one guidance for all images of a call, so the groups of a batch that are alike
are painted one after the other. `together` is what somebody gets who writes the denoising loop anew, with a timestep of
its own for every row: images that have ended leave the batch, none joins it, and all replies go out with the last.
Triton's environment holds this module too: it imports little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from captory_bench.measuring.denoising import denoise
from captory_bench.measuring.graphs import Graphs, decode_latents, encode_text
from captory_bench.measuring.workload import Painting
from captory_bench.peers.groups import alike
from captory_engine.device import StageCounts
from captory_engine.images import encode_image
from captory_engine.items import ImageFormat


class Image(NamedTuple):
    """A PNG, and how many images were painted together with it, itself included."""

    png: bytes
    batch_size: int


def paint_batch(
    graphs: Graphs, jobs: Sequence[Painting], negative: NDArray[Any], *, together: bool = False
) -> list[Image]:
    """Images of a batch of jobs, in their order; `negative` are the empty prompt's states, [1, T, D]."""
    text = encode_text(graphs, [job.prompt for job in jobs])
    images: dict[int, Image] = {}
    for group in [list(range(len(jobs)))] if together else alike(jobs):
        mates = [jobs[place] for place in group]
        latents = denoise(graphs, mates, text[group], negative, StageCounts(), shrinking=True)
        for place, pixels in zip(group, decode_latents(graphs, latents), strict=True):
            images[place] = Image(encode_image(pixels, ImageFormat.PNG), len(group))
    return [images[place] for place in range(len(jobs))]
