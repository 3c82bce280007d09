"""A plain slot-table decoding loop for exported token decoders, and how far what it writes is from the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.float32]]


class Decoded(NamedTuple):
    """Texts: new ids, eos included, and the logits that chose them, [steps, V], both a row."""

    ids: list[list[int]]
    logits: list[NDArray[np.float32]]


class CacheShape(NamedTuple):
    """The slot table's fixed sizes."""

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


def open_graph(folder: Path) -> onnxruntime.InferenceSession:
    """The graph of a model's folder, on the CPU."""
    return onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


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
    input_ids, counts = _padded(prompts), [len(prompt) for prompt in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    logits: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
    for _ in range(max_new_tokens):
        scores = _step(session, table, input_ids, counts, cross or {})
        for row, done in enumerate(ids):
            if not done or done[-1] != eos_id:
                done.append(int(scores[row].argmax()))
                logits[row].append(scores[row])
        if all(done[-1] == eos_id for done in ids):
            break
        input_ids, counts = np.array([done[-1:] for done in ids]), [1] * len(prompts)
    return Decoded(ids, [np.stack(rows) for rows in logits])


def _padded(prompts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Ids [B, S], filled up on the right."""
    input_ids = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = prompt
    return input_ids


def _step(
    session: onnxruntime.InferenceSession,
    table: SlotTable,
    input_ids: NDArray[np.int64],
    counts: Sequence[int],
    cross: Arrays,
) -> NDArray[np.float32]:
    """Append each row's first `counts[row]` of the new ids to the table; returns the logits behind them, [B, V]."""
    max_positions = table.keys.shape[3]
    position_ids = table.lengths[:, None] + np.arange(input_ids.shape[1])
    feed = {"input_ids": input_ids, "position_ids": np.minimum(position_ids, max_positions - 1)}
    outputs: Any = session.run(None, {**feed, **table.inputs(), **cross})
    logits, keys, values = outputs
    table.append(keys, values, counts)
    behind: NDArray[np.float32] = logits[np.arange(len(counts)), np.asarray(counts) - 1]
    return behind


def until_eos(rows: NDArray[np.int64], logits: NDArray[np.float32], eos_id: int) -> Decoded:
    """Cut a batch of new ids [B, S] and its logits [B, S, V] behind each row's first eos."""
    ends = [row.index(eos_id) + 1 if eos_id in row else len(row) for row in rows.tolist()]
    cut = list(zip(rows, logits, ends, strict=True))
    return Decoded([row[:end].tolist() for row, _, end in cut], [scores[:end] for _, scores, end in cut])


def joined(parts: Iterable[Decoded]) -> Decoded:
    """Put the rows of several decodings into one."""
    kept = list(parts)
    return Decoded([row for part in kept for row in part.ids], [row for part in kept for row in part.logits])


def compare_texts(wanted: Decoded, got: Decoded) -> dict[str, float]:
    """How far two greedy decodings are apart; `difference` is the largest of logits, over the largest logit or 1.

    Logits are compared up to the first token that differs: behind it they have other words before them.
    """
    steps = [_num_comparable(one, other) for one, other in zip(wanted.ids, got.ids, strict=True)]
    pairs = [(a[:num], b[:num]) for a, b, num in zip(wanted.logits, got.logits, steps, strict=True)]
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    largest = max(float(np.abs(a).max()) for a, _ in pairs)
    same = sum(a == b for a, b in zip(wanted.ids, got.ids, strict=True))
    return {
        "texts": len(got.ids),
        "tokens": sum(map(len, got.ids)),
        "same_texts": same / len(got.ids),
        "difference": difference / max(1.0, largest),
    }


def _num_comparable(one: Sequence[int], other: Sequence[int]) -> int:
    """Steps up to the first token that differs, itself included."""
    pairs = enumerate(zip(one, other, strict=False), 1)
    return next((step for step, (a, b) in pairs if a != b), min(len(one), len(other)))
