"""What a service with request-level batching computes for a batch: the same graphs as Captory, called directly.

It is what a competent user writes: the photographs of a batch are captioned together, and all its requests painted
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from captory_bench.measuring.graphs import caption, cip_prompts, encode_text, open_graphs, to_pixel_values
from captory_bench.measuring.workload import Painting
from captory_bench.peers.contenders import Conditions
from captory_bench.peers.painting import paint_together
from captory_bench.peers.wire import Painted, Wanted


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
        pairs = zip(jobs, paint_together(self._graphs, jobs, self._negative), strict=True)
        return [Painted(png, job.prompt, len(jobs)) for job, png in pairs]

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
