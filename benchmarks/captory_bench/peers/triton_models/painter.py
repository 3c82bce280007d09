"""Triton model: prompts to images. Those of a batch that are alike are painted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captory_bench.measuring.graphs import encode_text
from captory_bench.measuring.workload import Painting
from captory_bench.peers.painting import paint_batch
from captory_bench.peers.triton_models.tensors import answer, open_graphs_of, row, text


class TritonPythonModel:
    """(prompt, steps, seed, guidance_scale, guidance_interval, sampler) -> (image, batch_size), one a request."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graphs."""
        self._graphs = open_graphs_of(args)
        self._negative = encode_text(self._graphs, [""])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Paint a batch."""
        images = paint_batch(self._graphs, [_read(request) for request in requests], self._negative)
        return [answer(image=image.png, batch_size=image.batch_size) for image in images]


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
