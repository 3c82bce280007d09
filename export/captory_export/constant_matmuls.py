"""Multiplications by constants in the one form that the quantiser takes: a `MatMul` by an initializer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet


def as_matmuls(model: ir.Model) -> None:
    """Rewrite layers that are a `Gemm`, as GPT-2's, and heads that transpose the weights of the embedding; in place."""
    RewriteRuleSet([gemm, gemm_with_bias, transposed]).apply_to_model(model)
    common.LiftConstantsToInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _gemm(op: Any, x: Any, w: Any) -> Any:
    return op.Gemm(x, w, _allow_other_attributes=True, _outputs=["y"])


def _gemm_with_bias(op: Any, x: Any, w: Any, b: Any) -> Any:
    return op.Gemm(x, w, b, _allow_other_attributes=True, _outputs=["y"])


def _is_linear(context: Any, w: ir.Value, y: ir.Value, **_: Any) -> bool:
    """Whether it is x W or x W^T, plus the bias if there is one, with a constant W."""
    node = y.producer()
    if node is None or w.const_value is None:
        return False
    scales = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return scales == [1.0, 1.0] and not node.attributes.get_int("transA", 0)


def _multiply(op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
    node = y.producer()
    assert node is not None
    return op.MatMul(x, _transposed(op, w) if node.attributes.get_int("transB", 0) else w)


def _multiply_and_add(op: Any, x: ir.Value, w: ir.Value, b: ir.Value, y: ir.Value) -> Any:
    return op.Add(_multiply(op, x, w, y), b)


def _by_transposed(op: Any, x: Any, w: Any) -> Any:
    return op.MatMul(x, op.Transpose(w, _allow_other_attributes=True))


def _is_constant_matrix(context: Any, w: ir.Value, **_: Any) -> bool:
    return w.const_value is not None and len(w.const_value.shape) == 2


def _by_constant(op: Any, x: ir.Value, w: ir.Value) -> Any:
    return op.MatMul(x, _transposed(op, w))


def _transposed(op: Any, matrix: ir.Value) -> Any:
    assert matrix.const_value is not None
    return op.Constant(value=ir.tensor(np.ascontiguousarray(matrix.const_value.numpy().T)))


gemm = RewriteRule(_gemm, _multiply, _is_linear)
gemm_with_bias = RewriteRule(_gemm_with_bias, _multiply_and_add, _is_linear)
transposed = RewriteRule(_by_transposed, _by_constant, _is_constant_matrix)
