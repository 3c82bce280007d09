"""Graphs in the types that engines are built in: half inside, fp32 at the ends, and the same function."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import onnxruntime
import pytest
from tiny_models import scaler_inputs, write_scaler

from captory_engine.family import find_family
from captory_engine.repository import ModelFolder, default_repository, open_model
from captory_engine.sessions.registry import open_session

onnx = pytest.importorskip("onnx")

from captory_export.tensorrt import build  # noqa: E402
from captory_export.tensorrt.build import checked_profiles  # noqa: E402
from captory_export.tensorrt.gpu_export import TOLERANCES, difference  # noqa: E402
from captory_export.tensorrt.profiles import Profile, example  # noqa: E402

ROOT, FAMILY = find_family(default_repository())
FLOAT, FP16, BF16 = 1, 10, 16


def typed(model: ModelFolder, precision: str, said: list[str] | None = None) -> AbstractContextManager[Path]:
    """For inputs of three rows."""
    inputs = scaler_inputs(3) if model.name == "scaler" else example(profile(model.name), model, 3)
    return build.typed(model, precision, inputs, [].append if said is None else said.append)


def profile(name: str) -> Profile:
    return checked_profiles(ROOT, FAMILY, name)[-1]


def scaler(root: Path) -> ModelFolder:
    write_scaler(root)
    return open_model(root, "scaler")


@pytest.mark.parametrize(("precision", "half"), [("fp16", FP16), ("bf16", BF16)])
def test_a_copy_is_typed_and_its_ends_stay_wide(tmp_path: Path, precision: str, half: int) -> None:
    model = scaler(tmp_path)
    before = model.model_path.read_bytes()
    with typed(model, precision) as path:
        graph = onnx.load(path).graph
    casts = {attribute.i for node in graph.node if node.op_type == "Cast" for attribute in node.attribute}
    assert casts == {half, FLOAT}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {FLOAT}
    assert not path.exists()
    assert model.model_path.read_bytes() == before


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("half", [FP16, BF16])
def test_a_graph_that_is_typed_already_stays_as_it_is(tmp_path: Path, precision: str, half: int) -> None:
    model = scaler(tmp_path)
    graph = onnx.load(model.model_path)
    graph.graph.initializer.add(name="half", data_type=half, dims=[0])
    onnx.save(graph, model.model_path)
    with typed(model, precision) as path:
        assert path == model.model_path


def test_a_graph_s_own_types_need_no_copy(tmp_path: Path) -> None:
    model = scaler(tmp_path)
    with typed(model, "graph") as path:
        assert path == model.model_path


def test_a_graph_whose_values_do_not_fit_fp16_stays_fp32(tmp_path: Path) -> None:
    model, said = scaler(tmp_path), []
    graph = onnx.load(model.model_path)
    graph.graph.initializer.add(name="loud", data_type=FLOAT, float_data=[1e6])
    graph.graph.node[-1].CopyFrom(onnx.helper.make_node("Mul", ["product", "loud"], ["y"]))
    onnx.save(graph, model.model_path)
    with typed(model, "fp16", said) as path:
        assert path.read_bytes() == model.model_path.read_bytes()
    assert said == ["scaler: its values do not fit fp16, so it stays fp32; bf16 would hold them"]
    with typed(model, "bf16", said) as path:
        assert "Cast" in {node.op_type for node in onnx.load(path).graph.node}
    assert len(said) == 1


def test_bf16_is_all_that_fp16_would_be() -> None:
    model = open_model(ROOT, "picto_painter_unet")
    with typed(model, "fp16") as path:
        wanted = onnx.load(path).graph
    with typed(model, "bf16") as path:
        found = onnx.load(path).graph
    types = [[tensor.data_type for tensor in graph.initializer] for graph in (wanted, found)]
    assert FP16 in types[0]
    assert types[1] == [BF16 if one == FP16 else one for one in types[0]]
    assert FP16 not in {value.type.tensor_type.elem_type for value in found.value_info}


@pytest.mark.parametrize("name", FAMILY.models)
def test_the_embedded_graphs_in_fp16_compute_the_same(name: str) -> None:
    model = open_model(ROOT, name)
    inputs, names = example(profile(name), model, 3), [spec.name for spec in model.outputs]
    with typed(model, "fp16") as path:
        half = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(names, inputs)
    expected = open_session("onnx", model).run(inputs)
    assert difference(expected, dict(zip(names, half, strict=True))) <= TOLERANCES["fp16"]
