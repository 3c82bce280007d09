"""3 x 3 convolutions as Winograd's minimal filtering (Lavin and Gray 2016), in nothing but matrix multiplications.

A convolution of an image of known height and width becomes: transform the input tiles (`Gemm`), multiply each
transformed position's [rows, C] by its own [C, K] (`MatMul`), transform back (`Gemm`). Tiles of 4 x 4 outputs take a
quarter of the multiplications. Operand order does all the transposing, so no tensor is ever rearranged. The filters are
kept as they are and transformed when the graph is loaded, by constant folding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter.pattern import RewriteRule

Matrix = NDArray[Any]
SMALLEST_WIDTH = 32  # channels: below, the transforms cost more than they save
MAX_WORK = 0.75  # of the direct convolution's multiplications
MAX_FILTER_BYTES = 4 << 20  # of transformed filters: more would not stay in the caches, and quadruples the memory


class Minimal(NamedTuple):
    """F(m, 3) of Lavin and Gray: transforms of input [m + 2, m + 2], filter [m + 2, 3] and output [m, m + 2]."""

    input: Matrix
    filter: Matrix
    output: Matrix


class Step(NamedTuple):
    """One pass over one axis, or over both where an image is a row of tiles: [positions x tiles, pixels] each."""

    forward: Matrix
    backward: Matrix


class Plan(NamedTuple):
    """How one convolution is computed. `positions` leads the shapes of transformed input and transformed filter."""

    steps: tuple[Step, ...]
    filter: Matrix  # [positions, 9]
    input_shape: tuple[int, ...]
    filter_shape: tuple[int, ...]
    output_shape: tuple[int, int, int]
    work: float  # multiplications, as a share of the direct convolution's


F2 = Minimal(
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=float),
    np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=float),
)
F4 = Minimal(
    np.array(
        [
            [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
        ],
        dtype=float,
    ),
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=float),
)  # fmt: skip


def plan(height: int, width: int, num_in: int, num_out: int) -> Plan | None:
    """Plan a convolution of [B, C, height, width] padded by 1; None where it does not pay.

    An image of one 4 x 4 tile is cut into two, which shares each transformed filter between twice the rows: measured as
    fast at 16 rows and faster below.
    """
    if height % 4 or width % 4 or min(num_in, num_out) < SMALLEST_WIDTH:
        return None
    single = height == width == 4
    rows, columns = (F2 if single else F4), F4
    down, across = axis_step(rows, height), axis_step(columns, width)
    tall, wide = len(rows.input), len(columns.input)
    filters = np.kron(rows.filter, columns.filter)
    if single:
        steps: tuple[Step, ...] = (Step(*(_both(*pair, tall, wide) for pair in zip(down, across, strict=True))),)
        input_shape: tuple[int, ...] = (tall * wide, -1, num_in)
        filter_shape: tuple[int, ...] = (tall * wide, num_in, num_out)
    else:
        steps = (across, down)
        input_shape, filter_shape = (tall, height // 4, wide, -1, num_in), (tall, 1, wide, num_in, num_out)
    work = _work(steps, height * width, tall * wide, num_in, num_out)
    fits = 4 * len(filters) * num_in * num_out <= MAX_FILTER_BYTES
    return (
        Plan(steps, filters, input_shape, filter_shape, (num_out, height, width), work)
        if fits and work <= MAX_WORK
        else None
    )


def axis_step(minimal: Minimal, size: int) -> Step:
    """Return the transforms of one axis of `size` pixels, zero padding included; rows go by position, then tile."""
    num_outputs, num_positions = minimal.output.shape
    forward = np.zeros((num_positions, size // num_outputs, size + 2))
    backward = np.zeros((num_positions, size // num_outputs, size))
    for tile in range(size // num_outputs):
        start = tile * num_outputs
        forward[:, tile, start : start + num_positions] = minimal.input
        backward[:, tile, start : start + num_outputs] = minimal.output.T
    return Step(forward[:, :, 1:-1].reshape(-1, size), backward.reshape(-1, size))


def _both(down: Matrix, across: Matrix, tall: int, wide: int) -> Matrix:
    """Join the transforms of both axes: [tall x wide x tiles, height x width]."""
    rows, columns = down.reshape(tall, -1, down.shape[1]), across.reshape(wide, -1, across.shape[1])
    joined: Matrix = np.einsum("iax,jby->ijabxy", rows, columns).reshape(-1, down.shape[1] * across.shape[1])
    return joined


def _work(steps: tuple[Step, ...], num_pixels: int, num_positions: int, num_in: int, num_out: int) -> float:
    transform, elements = 0, num_pixels
    for step in steps:
        rows, pixels = step.forward.shape
        elements = elements // pixels * rows
        transform += elements * pixels
    direct = 9 * num_pixels * num_in * num_out
    return (transform * (num_in + num_out) + elements * num_in * num_out) / direct


def _any_convolution(op: Any, x: Any, w: Any, b: Any) -> Any:
    return op.Conv(x, w, b, _allow_other_attributes=True, _outputs=["y"])


def _is_plain(context: Any, x: ir.Value, w: ir.Value, b: ir.Value, y: ir.Value) -> bool:
    """Whether it is 3 x 3, stride 1, padding 1, with constant weights and a known image size, and a plan pays."""
    node = y.producer()
    if node is None or w.const_value is None or b.const_value is None:
        return False
    ints = {name: tuple(a.as_ints()) for name, a in node.attributes.items() if a.type == ir.AttributeType.INTS}
    plain = ints.get("strides", (1, 1)) == ints.get("dilations", (1, 1)) == (1, 1)
    padded = ints.get("pads") == (1, 1, 1, 1) and node.attributes.get_int("group", 1) == 1
    return plain and padded and _plan_of(x, w) is not None


def _multiply(op: Any, x: ir.Value, w: ir.Value, b: ir.Value, **_: Any) -> Any:
    """Transform, multiply, transform back, add the bias."""
    made, kernel, bias = _plan_of(x, w), w.const_value, b.const_value
    assert made is not None
    assert kernel is not None
    assert bias is not None
    states: Any = x
    for step in made.steps:
        flat = op.Reshape(states, _ints(op, -1, step.forward.shape[1]))
        states = op.Gemm(_floats(op, step.forward), flat, transB=1)
    by_tap = kernel.numpy().transpose(2, 3, 1, 0).reshape(9, -1)  # [9, C K]
    filters = op.Reshape(op.MatMul(_floats(op, made.filter), _floats(op, by_tap)), _ints(op, *made.filter_shape))
    states = op.MatMul(op.Reshape(states, _ints(op, *made.input_shape)), filters)
    for step in reversed(made.steps):
        flat = op.Reshape(states, _ints(op, step.backward.shape[0], -1))
        states = op.Gemm(flat, _floats(op, step.backward), transA=1)
    states = op.Reshape(states, _ints(op, -1, *made.output_shape))
    return op.Add(states, _floats(op, bias.numpy().reshape(-1, 1, 1)))


def _plan_of(x: ir.Value, w: ir.Value) -> Plan | None:
    if x.shape is None or w.shape is None or list(w.shape[2:]) != [3, 3]:
        return None
    sizes = [size for size in (*x.shape[2:], w.shape[1], w.shape[0]) if isinstance(size, int)]
    return plan(*sizes) if len(sizes) == 4 else None


def _floats(op: Any, values: NDArray[Any]) -> Any:
    return op.Constant(value=ir.tensor(np.ascontiguousarray(values, dtype=np.float32)))


def _ints(op: Any, *values: int) -> Any:
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.int64)))


winograd = RewriteRule(_any_convolution, _multiply, _is_plain)
