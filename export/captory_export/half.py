"""fp32 to a half type in a graph, node by node.

ONNX Runtime's own converter rounds whatever passes from one node that stays fp32 to the next, angles among it, and
makes two nodes of one name where both take the same value; so this is ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

ANGLES = ("Sin", "Cos")
# Sums of squares and exponentials leave a half type's range or precision.
WIDE = ("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Exp", "Softmax")
NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "BatchNormalization")
ALWAYS_WIDE = {"Resize": (1, 2)}  # inputs that are fp32 whatever the others are: region and scales
LARGEST_FP16 = 65504.0


def narrow(model: ir.Model, kind: ir.DataType) -> None:
    """Compute in `kind`, in place, but for norms, softmax, and all that a sine or cosine is computed from.

    Inputs and outputs of the graph stay fp32: times and positions are not rounded on their way in. A constant larger
    than the type is made its largest.
    """
    _prepare(model)
    _Narrowing(model.graph, kind).run()
    common.RemoveUnusedNodesPass()(model)  # constants that are now there in the half type alone


def narrowed_values(model: ir.Model) -> list[ir.Value]:
    """What nodes make that `narrow` would put in a half type."""
    _prepare(model)
    kept = _kept(model.graph)
    made = (value for node in model.graph if node not in kept for value in node.outputs)
    return [value for value in made if value.dtype == ir.DataType.FLOAT]


def _prepare(model: ir.Model) -> None:
    """Every constant an initializer, every value of a known type."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass(strict_mode=False)(model)


class _Narrowing:
    """One graph. `_twins` are values in the other type, made once each."""

    def __init__(self, graph: ir.Graph, kind: ir.DataType) -> None:
        self._graph = graph
        self._kind = kind
        self._twins: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Narrow every node that can be, then widen what goes out."""
        kept = _kept(self._graph)
        for node in list(self._graph):
            narrows = node not in kept
            if narrows:
                _retype(node, self._kind)
            for index, value in enumerate(node.inputs):
                wide = not narrows or index in ALWAYS_WIDE.get(node.op_type, ())
                if value is not None and value.dtype in (ir.DataType.FLOAT, self._kind):
                    node.replace_input_with(index, self._in(value, ir.DataType.FLOAT if wide else self._kind, node))
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == self._kind:
                self._graph.outputs[index] = self._widened(value)

    def _in(self, value: ir.Value, kind: ir.DataType, user: ir.Node) -> ir.Value:
        """The value in that type."""
        if value.dtype == kind:
            return value
        if value not in self._twins:
            self._twins[value] = (
                self._constant(value) if value.const_value is not None else self._cast(value, kind, user)
            )
        return self._twins[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        """A constant in the half type."""
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        if self._kind == ir.DataType.FLOAT16:
            numbers = np.where(np.isfinite(numbers), np.clip(numbers, -LARGEST_FP16, LARGEST_FP16), numbers)
        halved = np.asarray(numbers).astype(self._kind.numpy())
        tensor = ir.tensor(halved, name=f"{value.name}_half")
        shape, kind = ir.Shape(halved.shape), ir.TensorType(self._kind)
        twin = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self._graph.register_initializer(twin)
        return twin

    def _cast(self, value: ir.Value, kind: ir.DataType, user: ir.Node) -> ir.Value:
        """A cast, right behind what makes the value, or before the first that wants it where that is an input."""
        node = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}_cast")
        twin = node.outputs[0]
        twin.name, twin.shape, twin.type = f"{value.name}_{kind.name.lower()}", value.shape, ir.TensorType(kind)
        maker = value.producer()
        if maker is None:
            self._graph.insert_before(user, node)
        else:
            self._graph.insert_after(maker, node)
        return twin

    def _widened(self, value: ir.Value) -> ir.Value:
        """An output of the graph, under its own name."""
        name, value.name = value.name, f"{value.name}_half"
        node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_out")
        node.outputs[0].name, node.outputs[0].shape = name, value.shape
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.append(node)
        return node.outputs[0]


def _kept(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that stay fp32."""
    kept = {node for node in graph if node.op_type in (*WIDE, *NORMS)}
    waiting = [node for node in graph if node.op_type in ANGLES]
    before: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in before:
            before.add(node)
            waiting += _makers(node)
    kept |= before
    for node in graph:  # what stands between them, such as the addition of a norm's epsilon
        makers = list(_makers(node))
        users = [user for value in node.outputs for user, _ in value.uses()]
        if makers and users and kept.issuperset(makers) and kept.issuperset(users):
            kept.add(node)
    return kept


def _makers(node: ir.Node) -> Iterable[ir.Node]:
    return (maker for value in node.inputs if value is not None and (maker := value.producer()) is not None)


def _retype(node: ir.Node, kind: ir.DataType) -> None:
    """What a node makes of fp32, it makes of `kind` from now on."""
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(kind)
    if node.op_type == "Cast" and node.attributes.get_int("to") == int(ir.DataType.FLOAT):
        node.attributes["to"] = ir.AttrInt64("to", int(kind))
    if node.op_type == "ConstantOfShape" and node.outputs[0].dtype == kind:
        filled = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled.astype(kind.numpy())))
