"""Triton model: prompts to images. Requests of a batch that are alike are painted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from captory_bench.denoising import denoise
from captory_bench.graphs import decode_latents, encode_text
from captory_bench.peers.groups import alike
from captory_bench.peers.triton_models.tensors import answer, open_graphs_of, row, text
from captory_bench.workload import Painting
from captory_engine.device import StageCounts
from captory_engine.images import encode_image
from captory_engine.items import ImageFormat


class TritonPythonModel:
    """(prompt, steps, seed, guidance_scale, guidance_interval, sampler) -> image, a PNG, one a request."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graphs."""
        self._graphs = open_graphs_of(args)
        self._negative = encode_text(self._graphs, [""])

    def execute(self, requests: Sequence[Any]) -> list[None]:
        """Paint a batch, group by group; nobody waits for the groups after their own."""
        jobs = [_read(request) for request in requests]
        for group in alike(jobs):
            for place, image in zip(group, self._paint([jobs[place] for place in group]), strict=True):
                sender = requests[place].get_response_sender()
                sender.send(answer("image", image), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return [None] * len(requests)

    def _paint(self, jobs: Sequence[Painting]) -> list[bytes]:
        states = encode_text(self._graphs, [job.prompt for job in jobs])
        latents = denoise(self._graphs, jobs, states, self._negative, StageCounts())
        return [encode_image(pixels, ImageFormat.PNG) for pixels in decode_latents(self._graphs, latents)]


def _read(request: Any) -> Painting:
    first, last = row(request, "guidance_interval")
    return Painting(
        id="",
        prompt=text(request, "prompt"),
        steps=int(row(request, "steps")[0]),
        seed=int(row(request, "seed")[0]),
        guidance_scale=float(row(request, "guidance_scale")[0]),
        sampler=text(request, "sampler"),
        guidance_interval=(float(first), float(last)),
    )
