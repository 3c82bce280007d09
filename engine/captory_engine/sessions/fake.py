"""A backend without a model: deterministic outputs, faults on demand, and a record of every call.

Each output row is a function of the same row of the inputs alone, so a batch mate never shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from captory_engine.errors import Unavailable
from captory_engine.repository import ModelFolder
from captory_engine.sessions.base import Array, TensorSpec
from captory_engine.sessions.checks import check_inputs, check_outputs

_MAX_INTEGER = 100


@dataclass(slots=True)
class Call:
    """One run, as a fault sees it: counted from 1, with outputs that it may change."""

    number: int
    batch: int
    inputs: Mapping[str, Array]
    outputs: dict[str, Array]


Fault = Callable[[Call], None]


def fail_on(*numbers: int) -> Fault:
    """Fail the calls with these numbers, as a backend that dies and comes back."""

    def fault(call: Call) -> None:
        if call.number in numbers:
            raise Unavailable("BACKEND_FAILED", "The fake backend failed as told.")

    return fault


def nan_rows(output: str, chosen: Callable[[Mapping[str, Array], int], bool]) -> Fault:
    """Write NaN into the rows of `output` for which `chosen(inputs, row)` holds."""

    def fault(call: Call) -> None:
        for row in range(call.batch):
            if chosen(call.inputs, row):
                call.outputs[output][row] = np.nan

    return fault


def wrong_shape(output: str) -> Fault:
    """Drop the last row of `output`, as a backend that returns another batch size."""

    def fault(call: Call) -> None:
        call.outputs[output] = call.outputs[output][:-1]

    return fault


def slow(wait: Callable[[float], object], seconds: float) -> Fault:
    """Call `wait(seconds)` in every run: the clock is the caller's."""

    def fault(call: Call) -> None:
        wait(seconds)

    return fault


class FakeSession:
    """A Session over declared specs alone. `down` makes every run raise `Unavailable` until it is false again."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_batch: int = 16,
        digest: str = "",
        faults: Sequence[Fault] = (),
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.max_batch = max_batch
        self.digest = digest or hashlib.sha256(name.encode()).hexdigest()
        self.backend = "fake"
        self.faults = list(faults)
        self.down = False
        self.batches: list[int] = []

    @classmethod
    def of(cls, model: ModelFolder, faults: Sequence[Fault] = ()) -> FakeSession:
        """Return a fake of `model`, with its specs and digest."""
        specs = (model.name, model.inputs, model.outputs)
        return cls(*specs, max_batch=model.max_batch, digest=model.digest, faults=faults)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `Session.run`. Failed calls are counted in `batches` too."""
        batch = check_inputs(self, inputs)
        if self.down:
            raise Unavailable("BACKEND_DOWN", f"{self.name} is down.")
        self.batches.append(batch)
        call = Call(len(self.batches), batch, inputs, self._outputs(inputs, batch))
        for fault in self.faults:
            fault(call)
        check_outputs(self, call.outputs, batch)
        return call.outputs

    def close(self) -> None:
        """Stay down for good."""
        self.down = True

    def _outputs(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        phases = np.array([_phase(inputs, row) for row in range(batch)], np.float32)
        dynamic = _dynamic_sizes(self.inputs, inputs)
        return {spec.name: _fill(spec, phases, dynamic) for spec in self.outputs}


def _phase(inputs: Mapping[str, Array], row: int) -> float:
    """A number in [0, 1) that hashes all inputs of one row; CRC-32, for it costs the least."""
    state = 0
    for name in sorted(inputs):
        state = crc32(np.ascontiguousarray(inputs[name][row]).data, state)
    return state / 2**32


def _dynamic_sizes(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> list[int]:
    """The sizes of all dynamic dimensions in the order of declaration: the first ones serve the outputs."""
    return [
        size for spec in specs for want, size in zip(spec.shape, inputs[spec.name].shape[1:], strict=True) if want == -1
    ]


def _fill(spec: TensorSpec, phases: NDArray[np.float32], dynamic: Sequence[int]) -> Array:
    """Floats in [-1, 1), integers in [0, 100): a ramp over the row, shifted by the row's phase.

    The k-th dynamic dimension of an output has the size of the k-th dynamic dimension of the inputs, or 1.
    """
    sizes = iter([*dynamic, *[1] * len(spec.shape)])
    shape = tuple(next(sizes) if size == -1 else size for size in spec.shape)
    values = _ramp(prod(shape)) + phases[:, None]  # [B, N]
    values -= np.floor(values)
    if np.issubdtype(spec.dtype, np.floating):
        values *= 2
        values -= 1
    else:
        values = np.floor(values * (2 if spec.dtype == np.bool_ else _MAX_INTEGER))
    return values.astype(spec.dtype, copy=False).reshape(len(phases), *shape)


@lru_cache(maxsize=64)
def _ramp(size: int) -> NDArray[np.float32]:
    return (np.arange(size) * 0.6180339887498949 % 1.0).astype(np.float32)
