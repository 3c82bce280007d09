"""Does an exported token decoder do what the checkpoint does? A plain slot-table decoding loop and the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.float32]]
Report = dict[str, float | int | bool]
LOGITS_TOLERANCE = 1e-3


class Decoded(NamedTuple):
    """Texts: new ids, eos included, and the logits that chose them, [steps, V], both a row."""

    ids: list[list[int]]
    logits: list[NDArray[np.float32]]


class CacheShape(NamedTuple):
    """The slot table's fixed sizes, as the graph declares them."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


class SlotTable:
    """The cache of a batch: keys and values [B, L, Hkv, T_max, Dh] and how many positions each row holds.

    Free positions start with noise on purpose: they must never matter.
    """

    def __init__(self, num_rows: int, shape: CacheShape, max_positions: int) -> None:
        rng = np.random.default_rng(0)
        size = (num_rows, shape.num_layers, shape.num_kv_heads, max_positions, shape.head_dim)
        self.keys = rng.normal(scale=10, size=size).astype(np.float32)
        self.values = rng.normal(scale=10, size=size).astype(np.float32)
        self.lengths = np.zeros(num_rows, dtype=np.int64)

    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """Return the decoder's past inputs over all T_max positions."""
        valid = np.arange(self.keys.shape[3])[None] < self.lengths[:, None]
        return {"past_mask": valid.astype(np.float32), "past_keys": self.keys, "past_values": self.values}

    def append(self, keys: NDArray[np.float32], values: NDArray[np.float32], counts: Sequence[int]) -> None:
        """Store each row's first `counts[row]` new positions; keys, values: [B, L, Hkv, S, Dh]."""
        for row, count in enumerate(counts):
            place = slice(self.lengths[row], self.lengths[row] + count)
            self.keys[row, :, :, place] = keys[row, :, :, :count]
            self.values[row, :, :, place] = values[row, :, :, :count]
        self.lengths += np.asarray(counts)


def cache_shape(session: onnxruntime.InferenceSession) -> CacheShape:
    """Read the sizes of the cache off the graph's input past_keys [B, L, Hkv, T, Dh]."""
    (past_keys,) = (value.shape for value in session.get_inputs() if value.name == "past_keys")
    return CacheShape(past_keys[1], past_keys[2], past_keys[4])


def decode_greedily(
    session: onnxruntime.InferenceSession,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    max_positions: int,
    eos_id: int,
    cross: Arrays | None = None,
) -> Decoded:
    """Decode a batch of prompts of any lengths; returns the new ids, eos included, and each row's logits [steps, V].

    One right-padded prefill, then a token a step, always over all `max_positions` of the table.
    """
    table = SlotTable(len(prompts), cache_shape(session), max_positions)
    counts = [len(prompt) for prompt in prompts]
    input_ids = np.zeros((len(prompts), max(counts)), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = prompt
    last = np.array(counts) - 1
    ids: list[list[int]] = [[] for _ in prompts]
    logits: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
    for _ in range(max_new_tokens):
        position_ids = table.lengths[:, None] + np.arange(input_ids.shape[1])
        feed = {"input_ids": input_ids, "position_ids": np.minimum(position_ids, max_positions - 1)}
        outputs: Any = session.run(None, {**feed, **table.inputs(), **(cross or {})})
        scores, keys, values = outputs
        table.append(keys, values, counts)
        chosen = scores[np.arange(len(prompts)), last]  # [B, V]
        live = [row for row, done in enumerate(ids) if not done or done[-1] != eos_id]
        for row in live:
            ids[row].append(int(chosen[row].argmax()))
            logits[row].append(chosen[row])
        if all(done[-1] == eos_id for done in ids):
            break
        input_ids = np.array([done[-1:] for done in ids])
        counts, last = [1] * len(prompts), np.zeros(len(prompts), dtype=np.int64)
    return Decoded(ids, [np.stack(rows) for rows in logits])


def until_eos(rows: NDArray[np.int64], logits: NDArray[np.float32], eos_id: int) -> Decoded:
    """Cut a batch of new ids [B, S] and its logits [B, S, V] behind each row's first eos."""
    ends = [row.index(eos_id) + 1 if eos_id in row else len(row) for row in rows.tolist()]
    cut = list(zip(rows, logits, ends, strict=True))
    return Decoded([row[:end].tolist() for row, _, end in cut], [scores[:end] for _, scores, end in cut])


def joined(parts: Iterable[Decoded]) -> Decoded:
    """Put the rows of several decodings into one."""
    kept = list(parts)
    return Decoded([row for part in kept for row in part.ids], [row for part in kept for row in part.logits])


def compare(wanted: Decoded, got: Decoded) -> Report:
    """Return the parity report of two greedy decodings; logits are compared as far as both go."""
    pairs = list(zip(wanted.logits, got.logits, strict=True))
    difference = max(float(np.abs(a[: len(b)] - b[: len(a)]).max()) for a, b in pairs)
    same = sum(a == b for a, b in zip(wanted.ids, got.ids, strict=True))
    return {
        "examples": len(got.ids),
        "tokens": sum(map(len, got.ids)),
        "greedy_identical": same,
        "max_abs_logits_difference": difference,
        "passed": same == len(got.ids) and difference <= LOGITS_TOLERANCE,
    }
