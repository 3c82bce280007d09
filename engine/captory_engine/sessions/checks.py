"""The checks that every backend makes on what goes into a session and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from captory_engine.errors import BadOutput, InvalidInput
from captory_engine.sessions.base import Array, Session, TensorSpec


def check_inputs(session: Session, inputs: Mapping[str, Array]) -> int:
    """Return the batch size of `inputs`, whose names, types and shapes must be those of `session.inputs`."""
    expected = {spec.name for spec in session.inputs}
    if inputs.keys() != expected:
        raise _invalid(session, f"inputs are {_names(inputs)}, expected {_names(expected)}")
    num_rows = {_rows(session, spec, inputs[spec.name]) for spec in session.inputs}
    if len(num_rows) != 1:
        raise _invalid(session, f"inputs differ in their batch size: {sorted(num_rows)}")
    batch = num_rows.pop()
    if not 1 <= batch <= session.max_batch:
        raise _invalid(session, f"a batch of {batch} is outside 1 to {session.max_batch}")
    return batch


def check_outputs(session: Session, outputs: Mapping[str, Array], batch: int) -> None:
    """Raise `BadOutput` unless every declared output is there, of its type and shape, with `batch` rows."""
    for spec in session.outputs:
        array = outputs.get(spec.name)
        if array is None or array.dtype != spec.dtype or array.shape[:1] != (batch,) or not _fits(spec, array):
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            words = f"{session.name}: output {spec.name!r} is {found}, expected {spec.dtype} {[batch, *spec.shape]}"
            raise BadOutput("WRONG_SHAPE", words)


def _rows(session: Session, spec: TensorSpec, array: Array) -> int:
    if array.dtype != spec.dtype:
        raise _invalid(session, f"input {spec.name!r} is {array.dtype}, expected {spec.dtype}")
    if not _fits(spec, array):
        raise _invalid(session, f"input {spec.name!r} has shape {list(array.shape)}, expected {['B', *spec.shape]}")
    return int(array.shape[0])


def _fits(spec: TensorSpec, array: Array) -> bool:
    """True when every dimension after the batch is as declared; -1 takes any size, 0 included."""
    sizes = array.shape[1:]
    return array.ndim == len(spec.shape) + 1 and all(
        want in (-1, have) for want, have in zip(spec.shape, sizes, strict=True)
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _invalid(session: Session, words: str) -> InvalidInput:
    return InvalidInput("WRONG_TENSOR", f"{session.name}: {words}")
