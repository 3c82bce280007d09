"""What a service with request-level batching computes for a batch: the same graphs as Captory, called directly.

It is what a competent user writes: the photographs of a batch are captioned together, and requests of equal parameters
are painted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from captory_bench.contenders import Conditions
from captory_bench.denoising import denoise
from captory_bench.graphs import (
    Pixels,
    caption,
    cip_prompts,
    decode_latents,
    encode_text,
    open_graphs,
    to_pixel_values,
)
from captory_bench.peers.groups import alike
from captory_bench.peers.wire import Painted, Wanted
from captory_bench.workload import Painting
from captory_engine.device import StageCounts
from captory_engine.images import encode_image
from captory_engine.items import ImageFormat


class Painter:
    """A family's graphs, with the threads of `conditions`. Raises `BadModel`."""

    def __init__(self, conditions: Conditions) -> None:
        self._graphs = open_graphs(
            conditions.repository, conditions.family, backend=conditions.backend, num_threads=conditions.num_threads
        )
        self._negative = encode_text(self._graphs, [""])

    def paint(self, batch: Sequence[Wanted]) -> list[Painted]:
        """Paint a batch of requests of any kind, in their order."""
        jobs = self._prompted(batch)
        pixels: dict[int, Pixels] = {}
        for group in alike(jobs):
            pixels.update(zip(group, self._paint_alike([jobs[index] for index in group]), strict=True))
        return [Painted(encode_image(pixels[index], ImageFormat.PNG), job.prompt) for index, job in enumerate(jobs)]

    def _prompted(self, batch: Sequence[Wanted]) -> list[Painting]:
        """The jobs of a batch, those with a photograph captioned."""
        jobs = [wanted.job for wanted in batch]
        places = [index for index, wanted in enumerate(batch) if wanted.photo]
        if places:
            values = np.stack([to_pixel_values(self._graphs, batch[index].photo) for index in places])
            prompts = cip_prompts(caption(self._graphs, values), [batch[index].class_name for index in places])
            for index, prompt in zip(places, prompts, strict=True):
                jobs[index] = replace(jobs[index], prompt=prompt)
        return jobs

    def _paint_alike(self, jobs: Sequence[Painting]) -> list[Pixels]:
        text = encode_text(self._graphs, [job.prompt for job in jobs])
        return decode_latents(self._graphs, denoise(self._graphs, jobs, text, self._negative, StageCounts()))
