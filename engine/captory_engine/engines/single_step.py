"""Engines whose tasks end after one batch: the vision encoder, the text encoder and the autoencoder's decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captory_engine.device import Need, Task
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.errors import BadOutput
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import Session

Array = NDArray[Any]


@dataclass(slots=True)
class GraphTask(Task):
    """One row of a graph's inputs, without the batch dimension. The result maps output names to one row each."""

    inputs: Mapping[str, Array]
    exact: bool = False


class SingleStep:
    """Step engine over any graph that is run once a task. A row with NaN or Inf fails alone."""

    def __init__(self, name: str, session: Session, profile: Profile, rule: BatchRule) -> None:
        self.name = name
        self.profile = profile
        self._session = session
        self._rule = rule

    def need(self, task: GraphTask) -> Need:
        """One row; rows of equal shapes share a batch."""
        return Need((task.exact, *(array.shape for array in task.inputs.values())), 1)

    def run(self, tasks: Sequence[GraphTask]) -> int:
        """The one step."""
        inputs = {name: np.stack([task.inputs[name] for task in tasks]) for name in tasks[0].inputs}
        outputs, computed = padded(self._session, inputs, self._rule.rows(exact=tasks[0].exact))
        for row, task in enumerate(tasks):
            result = {name: array[row].copy() for name, array in outputs.items()}  # not a view of the whole batch
            if all(np.isfinite(array).all() for array in result.values()):
                task.result = result
            else:
                task.error = BadOutput("NON_FINITE", f"{self.name} gave NaN or Inf")
        return computed

    def retire(self, task: GraphTask) -> None:
        """Nothing is held."""
