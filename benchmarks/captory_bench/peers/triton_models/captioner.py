"""Triton model: photographs to caption-in-prompt prompts. Those of a batch are captioned together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captory_bench.measuring.graphs import caption, cip_prompts, to_pixel_values
from captory_bench.peers.triton_models.tensors import answer, open_graphs_of, row, text


class TritonPythonModel:
    """(photo, class_name) -> prompt, one a request."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graphs."""
        self._graphs = open_graphs_of(args)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Caption a batch."""
        photos = [row(request, "photo")[0] for request in requests]
        captions = caption(self._graphs, np.stack([to_pixel_values(self._graphs, photo) for photo in photos]))
        prompts = cip_prompts(captions, [text(request, "class_name") for request in requests])
        return [answer(prompt=prompt.encode()) for prompt in prompts]
