"""Rewrites that make an exported graph faster on ONNX Runtime's CPU provider; each computes the same function.

They stand beside what ONNX Runtime does by itself when it loads a graph (`ORT_ENABLE_ALL`) and hold on any CPU: nothing
here depends on the machine that exports. What was measured and left out: ONNX Runtime's fusions as onnxscript
offers them, taken as a set (fused attention, `SkipLayerNormalization`, `BiasGelu`), slower at these sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from captory_export.winograd import winograd


def _two_affine_maps(op: Any, x: Any, g: Any, b: Any, s: Any, t: Any) -> Any:
    return op.Add(op.Mul(op.Add(op.Mul(x, g), b), s), t)


def _first_by_channel(context: Any, g: ir.Value, b: ir.Value, s: ir.Value, t: ir.Value, **_: Any) -> bool:
    return _by_channel(g) and _by_channel(b) and _by_row_and_channel(s) and _by_row_and_channel(t)


def _joined(op: Any, x: ir.Value, g: ir.Value, b: ir.Value, s: ir.Value, t: ir.Value) -> Any:
    """(x g + b) s + t as x (g s) + (b s + t): two passes over x, not four. A timestep's scale and shift do this."""
    return op.Add(op.Mul(x, op.Mul(s, g)), op.Add(op.Mul(s, b), t))


def _affine_map(op: Any, x: Any, g: Any, b: Any) -> Any:
    return op.Add(op.Mul(x, g), b, _outputs=["y"])


def _of_images(context: Any, g: ir.Value, b: ir.Value, y: ir.Value, **_: Any) -> bool:
    return _by_channel(g) and _by_channel(b) and y.shape is not None and len(y.shape) == 4


def _as_batch_norm(op: Any, x: ir.Value, g: ir.Value, b: ir.Value, **_: Any) -> Any:
    """x g + b by channel, as behind every group norm, in one pass: a batch normalisation of mean 0, variance 1."""
    scale, bias = (np.ravel(value.const_value.numpy()) for value in (g, b) if value.const_value is not None)
    vectors = (scale, bias, np.zeros_like(scale), np.ones_like(scale))
    return op.BatchNormalization(x, *(_tensor(op, vector) for vector in vectors), epsilon=0.0)


def _linear(op: Any, x: Any, w: Any, b: Any) -> Any:
    return op.Add(op.MatMul(x, w), b)


def _of_fixed_length(context: Any, x: ir.Value, w: ir.Value, b: ir.Value) -> bool:
    """Whether x is [B, S, K] with a known S, and W [K, N] and b [N] are constant."""
    known = x.shape is not None and len(x.shape) == 3 and isinstance(x.shape[1], int)
    constant = w.const_value is not None and b.const_value is not None
    return known and constant and _rank(w) == 2 and _rank(b) == 1


def _as_gemm(op: Any, x: ir.Value, w: ir.Value, b: ir.Value) -> Any:
    """x W + b over [B, S, K] as one Gemm over [B S, K], which adds the bias as it goes."""
    assert x.shape is not None
    assert w.shape is not None
    (num_in, num_out), length = w.shape, x.shape[1]
    flat = op.Gemm(op.Reshape(x, _tensor(op, np.array([-1, num_in]))), w, b)
    return op.Reshape(flat, _tensor(op, np.array([-1, length, num_out])))


PASSES: dict[str, RewriteRule] = {
    "affine_chain": RewriteRule(_two_affine_maps, _joined, _first_by_channel),
    "channel_affine": RewriteRule(_affine_map, _as_batch_norm, _of_images),
    "winograd": winograd,
    "flat_linear": RewriteRule(_linear, _as_gemm, _of_fixed_length),
}


def optimise(model: ir.Model) -> dict[str, int]:
    """Apply every pass in the table's order, in place; returns how often each found something to rewrite."""
    counts = {name: RewriteRuleSet([rule]).apply_to_model(model) for name, rule in PASSES.items()}
    common.RemoveUnusedNodesPass()(model)
    return counts


def _tensor(op: Any, values: NDArray[Any]) -> Any:
    return op.Constant(value=ir.tensor(values))


def _rank(value: ir.Value) -> int:
    return -1 if value.shape is None else len(value.shape)


def _by_channel(value: ir.Value) -> bool:
    """Whether `value` is a constant [C, 1, 1] or [1, C, 1, 1]."""
    if value.const_value is None or _rank(value) < 3:
        return False
    constant = value.const_value.numpy()
    return bool(constant.size == constant.shape[-3])


def _by_row_and_channel(value: ir.Value) -> bool:
    """Whether `value` is [B, C, 1, 1]."""
    return value.shape is not None and len(value.shape) == 4 and list(value.shape[2:]) == [1, 1]
