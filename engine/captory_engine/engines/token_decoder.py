"""Token decoding as a step engine: captioner and writer alike decode one token a row and step, over a slot table.

The cache is a table [slots, layers, heads, max_positions, head_dim] that the engine owns; each row has its own
positions and mask. Prefill is a batch of its own. Of the table a batch passes a length that follows from each row's own
position, so only rows of equal length ride together: one that followed the longest mate would change bits in ONNX
Runtime, and a changed bit may change a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captory_engine.device import Need, Task
from captory_engine.diffusion.noise import seeded_uniform
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.slots import Slots, place
from captory_engine.errors import BadOutput
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import Session

Array = NDArray[Any]
LEAST_PAST = 16  # positions: shorter pasts would split batches for little


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The decoder's cache and its ends."""

    num_layers: int
    num_heads: int
    head_dim: int
    max_positions: int
    eos_id: int


@dataclass(slots=True)
class TokenTask(Task):
    """A prefix to a continuation. `context` holds per-row inputs that every step passes again (cross keys and values).

    Greedy where `temperature` is 0, else sampled by `seed` (Gumbel-max over the top `top_k`, 0: all). The result is
    the tokens after the prefix, without the end token.
    """

    prefix: tuple[int, ...]
    max_new_tokens: int
    context: Mapping[str, Array] = field(default_factory=dict)
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0
    exact: bool = False
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    slot: int | None = None


class TokenDecoder:
    """Step engine over (input_ids, position_ids, past_mask, past_keys, past_values, …) -> (logits, new_keys, …)."""

    def __init__(self, name: str, session: Session, shape: DecoderShape, profile: Profile, rule: BatchRule) -> None:
        self.name = name
        self.profile = profile
        self._session = session
        self._shape = shape
        self._rule = rule
        self._slots: Slots | None = None
        self._opening = Lock()

    def need(self, task: TokenTask) -> Need:
        """One row; a batch holds rows of one bucket of lengths, of prefixes or of what is cached."""
        if not task.tokens:
            return Need(("prefill", task.exact, _bucket(len(task.prefix))), 1)
        return Need(("decode", task.exact, self._past(task)), 1)

    def run(self, tasks: Sequence[TokenTask]) -> int:
        """Prefill or decode one token of every row."""
        slots = self._enter(tasks)
        tasks = sorted(tasks, key=lambda task: task.slot or 0)
        fed = [task.prefix if not task.tokens else (task.tokens[-1],) for task in tasks]
        num_fed = np.array([len(row) for row in fed])
        length = 1 if tasks[0].tokens else _bucket(int(num_fed.max()))
        rule = self._rule.rows(exact=tasks[0].exact)
        outputs, computed = padded(self._session, self._inputs(tasks, fed, length, slots), rule)
        self._store(tasks, num_fed, outputs, slots)
        self._extend(tasks, outputs["logits"][np.arange(len(tasks)), num_fed - 1])
        return computed

    def retire(self, task: TokenTask) -> None:
        """Free the task's slot."""
        if task.slot is not None and self._slots is not None:
            self._slots.give(task.slot)
            task.slot = None

    def _enter(self, tasks: Sequence[TokenTask]) -> Slots:
        slots = self._table(tasks[0])
        for task in tasks:
            if task.slot is None:
                task.slot = slots.take(**task.context)
        return slots

    def _table(self, task: TokenTask) -> Slots:
        with self._opening:
            if self._slots is None:
                shape = self._shape
                cache = (shape.num_layers, shape.num_heads, shape.max_positions, shape.head_dim)
                context = {name: (array.shape, np.float32) for name, array in task.context.items()}
                tables = {"past_keys": (cache, np.float32), "past_values": (cache, np.float32), **context}
                self._slots = Slots(tables, self.profile.max_slots)
            return self._slots

    def _past(self, task: TokenTask) -> int:
        """How many positions of the cache a row is given, the same wherever it rides."""
        return min(max(LEAST_PAST, _bucket(task.cached)), self._shape.max_positions)

    def _inputs(
        self, tasks: Sequence[TokenTask], fed: Sequence[Sequence[int]], length: int, slots: Slots
    ) -> dict[str, Array]:
        taken, past = place([task.slot or 0 for task in tasks]), self._past(tasks[0])
        cached = np.array([task.cached for task in tasks])
        ids = np.array([[*row, *[self._shape.eos_id] * (length - len(row))] for row in fed], np.int64)
        return {
            "input_ids": ids,
            "position_ids": np.minimum(cached[:, None] + np.arange(length)[None], self._shape.max_positions - 1),
            "past_mask": (np.arange(past)[None] < cached[:, None]).astype(np.float32),
            "past_keys": slots["past_keys"][taken, :, :, :past],
            "past_values": slots["past_values"][taken, :, :, :past],
            **{name: slots[name][taken] for name in tasks[0].context},
        }

    def _store(self, tasks: Sequence[TokenTask], num_fed: Array, outputs: Mapping[str, Array], slots: Slots) -> None:
        """Every row's new keys and values, after those that it has."""
        cached = np.array([task.cached for task in tasks])
        row, at = np.nonzero(np.arange(num_fed.max()) < num_fed[:, None])
        slot, position = np.array([task.slot for task in tasks])[row], cached[row] + at
        slots["past_keys"][slot, :, :, position] = outputs["new_keys"][row, :, :, at]
        slots["past_values"][slot, :, :, position] = outputs["new_values"][row, :, :, at]
        for task, total in zip(tasks, (cached + num_fed).tolist(), strict=True):
            task.cached = total

    def _extend(self, tasks: Sequence[TokenTask], logits: Array) -> None:
        """Every task's next token, from logits [B, V]; a row that is not finite fails alone."""
        finite, best = np.isfinite(logits), logits.argmax(axis=1)
        for row, task in enumerate(tasks):
            if finite[row].all():
                self._append(task, int(best[row]) if task.temperature <= 0.0 else _drawn(task, logits[row]))
            else:
                task.error = BadOutput("NON_FINITE", f"{self.name} gave NaN or Inf")

    def _append(self, task: TokenTask, token: int) -> None:
        if token != self._shape.eos_id:
            task.tokens.append(token)
        room = self._shape.max_positions - task.cached
        if token == self._shape.eos_id or len(task.tokens) >= task.max_new_tokens or room < 1:
            task.result = tuple(task.tokens)


def draw(logits: Array, temperature: float, top_k: int, uniform: Callable[[int], Array]) -> int:
    """The next token of one row of logits [V]: Gumbel-max sampling (Maddison et al. 2014) over the `top_k` best."""
    scaled = logits.astype(np.float64) / temperature
    if top_k:
        scaled = np.where(scaled >= np.partition(scaled, -top_k)[-top_k], scaled, -np.inf)
    return int(np.argmax(scaled - np.log(-np.log(uniform(len(scaled))))))


def _drawn(task: TokenTask, logits: Array) -> int:
    stream = 1 + len(task.tokens)
    return draw(logits, task.temperature, task.top_k, lambda size: seeded_uniform(task.seed, size, stream=stream))


def _bucket(length: int) -> int:
    """The next power of two."""
    return 1 << (length - 1).bit_length()
