"""What a service with request-level batching computes for a batch: the same graphs as Captory, called directly.

The photographs of a batch are captioned together, and its requests painted as `painting` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from captory_bench.measuring.graphs import caption, cip_prompts, encode_text, open_graphs, to_pixel_values
from captory_bench.measuring.workload import Painting
from captory_bench.peers.contenders import Conditions
from captory_bench.peers.painting import paint_batch
from captory_bench.peers.wire import Painted, Wanted


class Painter:
    """A family's graphs, with the threads of `conditions`. Raises `BadModel`."""

    def __init__(self, conditions: Conditions, *, together: bool = False) -> None:
        self._graphs = open_graphs(
            conditions.repository, conditions.family, backend=conditions.backend, num_threads=conditions.num_threads
        )
        self._together = together
        self._negative = encode_text(self._graphs, [""])

    def paint(self, batch: Sequence[Wanted]) -> list[Painted]:
        """Paint a batch of requests of any kind, in their order."""
        jobs = self._prompted(batch)
        images = paint_batch(self._graphs, jobs, self._negative, together=self._together)
        return [Painted(image.png, job.prompt, image.batch_size) for job, image in zip(jobs, images, strict=True)]

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
