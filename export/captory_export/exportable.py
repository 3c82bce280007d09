"""What an architecture brings to the exporter: its graphs, its section of the family file, and a check of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from captory_engine.family import Captioner, Painter, Writer


class Axis(NamedTuple):
    """A free axis of an input; its size is a multiple of `multiple`."""

    name: str
    multiple: int = 1


class Graph(NamedTuple):
    """A module to export, with the names and example values (two rows) of what goes in, and its outputs' names.

    The first axis is always the batch; `axes` are further free ones, by input and number. `reshaped` inputs are [B] in
    the graph and [B, 1] on the wire.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, Mapping[int, Axis]] = {}
    reshaped: Sequence[str] = ()


class Part(NamedTuple):
    """One graph of a checkpoint, to become the model folder `NAME_suffix`, with further files beside it."""

    suffix: str
    graph: Graph
    files: Mapping[str, bytes] = {}


class Exportable(Protocol):
    """A checkpoint of one role."""

    def parts(self) -> Iterator[Part]:
        """Its graphs, one after the other: what one holds can be freed before the next is made. Raises `BadModel`."""
        ...

    def section(self, name: str) -> Captioner | Painter | Writer:
        """The family file's section, for models called `name` and the parts' suffixes.

        Computes nothing. Raises `BadModel` for what the engine would get wrong.
        """
        ...

    def check(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        """Compare the exported models, by suffix, with the checkpoint from end to end.

        Returns figures; which of them must hold is the precision's to say.
        """
        ...
