"""A module at one batch size over buffers of its own: on CUDA a captured graph that is replayed, elsewhere a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

NUM_WARM_UPS = 2


class FixedBatch:
    """`module` over inputs [rows, ...] like those in `like`; fewer rows leave the buffers' other rows as they are.

    Rows are independent of each other, so what stands in the other rows never shows.
    """

    def __init__(self, module: nn.Module, like: Mapping[str, Tensor], rows: int, pool: Any = None) -> None:
        self._module = module
        self._inputs = {name: value.new_zeros((rows, *value.shape[1:])) for name, value in like.items()}
        self._graph = torch.cuda.CUDAGraph() if next(iter(like.values())).is_cuda else None
        self._outputs: tuple[Tensor, ...] = ()
        if self._graph is not None:
            self._warm_up()
            self._capture(self._graph, pool)

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of as many rows as came in, apart from the buffers. One thread at a time."""
        rows = len(next(iter(inputs.values())))
        for name, value in inputs.items():
            self._inputs[name][:rows].copy_(value)
        if self._graph is None:
            self._call()
        else:
            self._graph.replay()
        return tuple(output[:rows].clone() for output in self._outputs)

    def _call(self) -> None:
        self._outputs = self._module(**self._inputs)

    def _capture(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        # the first context goes back to this stream even where a failed capture would not;
        # thread_local: another lane may allocate on the device meanwhile
        capture = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
        with torch.cuda.stream(torch.cuda.current_stream()), capture:
            self._call()

    def _warm_up(self) -> None:
        """Compile, choose kernels and load libraries on a stream apart, as capturing demands."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self._call()
        torch.cuda.current_stream().wait_stream(stream)


def bucket_of(buckets: tuple[int, ...], rows: int) -> int:
    """The smallest bucket that holds `rows`; `rows` itself above all of them."""
    return min((bucket for bucket in buckets if bucket >= rows), default=rows)
