"""How many rows a graph is run with: as they come, or a fixed batch where bits must not depend on mates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captory_engine.sessions.arrays import arrays_of, computed_rows
from captory_engine.sessions.base import Session

Array = Any  # NumPy's or the session's own


@dataclass(frozen=True, slots=True)
class BatchRule:
    """`exact_rows`: the one batch size that `exact` work, or with `always` all work, is run with; 0: as it comes."""

    exact_rows: int = 0
    always: bool = False

    def rows(self, *, exact: bool) -> int:
        """The fixed batch size, or 0 for as many rows as there are."""
        return self.exact_rows if exact or self.always else 0


def padded(session: Session, inputs: Mapping[str, Array], fixed_rows: int = 0) -> tuple[dict[str, Array], int]:
    """Run all rows, in slices of at most the session's `max_batch`; returns outputs and the rows computed.

    With `fixed_rows` every slice has exactly so many rows (or `max_batch`, where that is less), the last one padded
    by repeating its first row.
    """
    num_rows = len(next(iter(inputs.values())))
    fixed_rows = min(fixed_rows, session.max_batch)
    size = fixed_rows or session.max_batch
    parts = [_run_slice(session, inputs, start, size, fixed_rows) for start in range(0, num_rows, size)]
    if len(parts) == 1:
        outputs = {name: array[:num_rows] for name, array in parts[0].items()}
    else:
        join = arrays_of(session).concatenate
        outputs = {name: join([part[name] for part in parts])[:num_rows] for name in parts[0]}
    slices = (fixed_rows or min(size, num_rows - start) for start in range(0, num_rows, size))
    return outputs, sum(computed_rows(session, rows) for rows in slices)


def _run_slice(
    session: Session, inputs: Mapping[str, Array], start: int, size: int, fixed_rows: int
) -> dict[str, Array]:
    rows = {name: array[start : start + size] for name, array in inputs.items()}
    num_rows = len(next(iter(rows.values())))
    if num_rows < fixed_rows:
        repeated = [*range(num_rows), *[0] * (fixed_rows - num_rows)]
        rows = {name: array[repeated] for name, array in rows.items()}
    return session.run(rows)
