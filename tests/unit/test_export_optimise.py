"""The exporter's rewrites: each computes what the graph computed, and is left out where it does not fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx_ir as ir  # noqa: E402
import onnxruntime  # noqa: E402
from diffusers.models.embeddings import AttentionPooling, TextTimeEmbedding  # noqa: E402
from torch import nn  # noqa: E402

from captory_export import winograd  # noqa: E402
from captory_export.cached_attention import attend, visible_positions  # noqa: E402
from captory_export.exportable import Graph  # noqa: E402
from captory_export.graphs import flops_per_row  # noqa: E402
from captory_export.lean_modules import LeanPooling, lean  # noqa: E402
from captory_export.optimise import optimise  # noqa: E402

Weights = dict[str, np.ndarray[Any, Any]]


def graph(nodes: Sequence[Any], shapes: dict[str, Sequence[int | str | None]], weights: Weights) -> Any:
    """A model of float inputs and one output `y`; `weights` also holds integer shapes."""
    import onnx
    from onnx import helper, numpy_helper

    def value(name: str, shape: Sequence[int | str | None]) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    inputs = [value(name, shape) for name, shape in shapes.items() if name != "y"]
    made = helper.make_graph(
        list(nodes), "test", inputs, [value("y", shapes["y"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: Any, inputs: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        ["y"], inputs
    )


def rewritten(model: Any) -> tuple[Any, dict[str, int]]:
    ours = ir.from_proto(model)
    counts = optimise(ours)
    return ir.to_proto(ours), counts


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolution(height: int, width: int, channels: tuple[int, int], **attributes: Any) -> Any:
    from onnx import helper

    num_in, num_out = channels
    weights = {"w": noise(num_out, num_in, 3, 3) / (3 * num_in**0.5), "b": noise(num_out, seed=1)}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **{"pads": [1] * 4, **attributes})
    return graph([node], {"x": ["batch", num_in, height, width], "y": ["batch", num_out, None, None]}, weights)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (4, 8), (16, 12)])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_winograd_convolves(height: int, width: int, num_rows: int) -> None:
    model = convolution(height, width, (48, 40))
    changed, counts = rewritten(model)
    assert counts["winograd"] == 1
    assert not [node for node in changed.graph.node if node.op_type == "Conv"]
    inputs = {"x": noise(num_rows, 48, height, width, seed=2)}
    np.testing.assert_allclose(run(changed, inputs)[0], run(model, inputs)[0], atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        convolution(6, 8, (48, 40)),
        convolution(8, 8, (48, 16)),
        convolution(8, 8, (48, 40), strides=[2, 2]),
        convolution(8, 8, (48, 40), dilations=[2, 2], pads=[2] * 4),
        convolution(8, 8, (48, 40), pads=[0] * 4),
        convolution(8, 8, (640, 640)),
    ],
    ids=["size", "narrow", "stride", "dilation", "padding", "large"],
)
def test_other_convolutions_stay(model: Any) -> None:
    assert rewritten(model)[1]["winograd"] == 0


def test_a_plan_counts_its_work() -> None:
    made = winograd.plan(8, 8, 64, 64)
    assert made is not None
    assert 0.25 < made.work < winograd.MAX_WORK
    assert winograd.plan(1024, 1024, 32, 32) is None


def test_affine_maps_are_joined() -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Mul", ["x", "g"], ["a"]), helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["d"]), helper.make_node("Add", ["d", "t"], ["y"]),
    ]  # fmt: skip
    shapes = {"x": ["n", 6, 4, 4], "s": ["n", 6, 1, 1], "t": ["n", 6, 1, 1], "y": ["n", 6, 4, 4]}
    model = graph(nodes, shapes, {"g": noise(6, 1, 1), "b": noise(6, 1, 1, seed=1)})
    changed, counts = rewritten(model)
    assert counts["affine_chain"] == 1
    inputs = {name: noise(3, *shape[1:], seed=3) for name, shape in shapes.items() if name != "y"}
    np.testing.assert_allclose(run(changed, inputs)[0], run(model, inputs)[0], atol=1e-5)


@pytest.mark.parametrize(("shape", "applied"), [((6, 1, 1), 1), ((1, 1, 6), 0)])
def test_an_affine_map_by_channel_is_one_pass(shape: tuple[int, ...], applied: int) -> None:
    from onnx import helper

    nodes = [helper.make_node("Mul", ["x", "g"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    model = graph(nodes, {"x": ["n", 6, 6, 6], "y": ["n", 6, 6, 6]}, {"g": noise(*shape), "b": noise(*shape, seed=1)})
    changed, counts = rewritten(model)
    assert counts["channel_affine"] == applied
    inputs = {"x": noise(3, 6, 6, 6)}
    np.testing.assert_allclose(run(changed, inputs)[0], run(model, inputs)[0], atol=1e-5)


@pytest.mark.parametrize(("length", "applied"), [(5, 1), ("sequence", 0)])
def test_a_linear_layer_of_known_length_is_a_gemm(length: int | str, applied: int) -> None:
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    model = graph(nodes, {"x": ["n", length, 8], "y": ["n", length, 4]}, {"w": noise(8, 4), "b": noise(4)})
    changed, counts = rewritten(model)
    assert counts["flat_linear"] == applied
    inputs = {"x": noise(3, 5, 8)}
    np.testing.assert_allclose(run(changed, inputs)[0], run(model, inputs)[0], atol=1e-5)


@torch.no_grad()
def test_the_lean_pooling_pools_the_same() -> None:
    torch.manual_seed(0)
    pool, states = AttentionPooling(4, 16), torch.randn(3, 7, 16)
    torch.testing.assert_close(LeanPooling(pool)(states), pool(states))


def test_lean_leaves_the_checkpoint_as_it_is() -> None:
    module = nn.Sequential(TextTimeEmbedding(16, 8, num_heads=4))
    assert isinstance(lean(module)[0].pool, LeanPooling)
    assert isinstance(module[0].pool, AttentionPooling)


@torch.no_grad()
def test_attention_over_parts_is_attention_over_all() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    visible = visible_positions(torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]), 3)
    parts = [(keys[:, :, :5], values[:, :, :5]), (keys[:, :, 5:], values[:, :, 5:])]
    torch.testing.assert_close(attend(query, parts, visible), attend(query, [(keys, values)], visible))


def test_operations_are_counted_by_row() -> None:
    assert flops_per_row(Graph(nn.Linear(8, 4), {"input": torch.zeros(3, 8)}, ["y"])) == 2 * 8 * 4
