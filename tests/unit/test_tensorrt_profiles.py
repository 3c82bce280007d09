"""The shapes that engines are made for: within what the graphs take, and what the engines of a family are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import SCALER_CONFIG, scaler_graph, write_model

from captory_engine.errors import BadModel
from captory_engine.family import Family, find_family
from captory_engine.profiles import Curve, cache_path, save
from captory_engine.repository import ModelFolder, default_repository, open_model
from captory_engine.sessions.registry import open_session

onnx = pytest.importorskip("onnx")

from captory_export.tensorrt.build import checked_profiles  # noqa: E402
from captory_export.tensorrt.profiles import (  # noqa: E402
    UNMEASURED,
    Profile,
    Span,
    check_profiles,
    example,
    measured_curves,
    profiles_of,
    rows_of,
)

ROOT, FAMILY = find_family(default_repository())
FIXED = {"sample": (8, 8, 8), "timestep": (), "encoder_hidden_states": (64, 128)}


def fixed(*sizes: int) -> tuple[Span, ...]:
    return tuple(Span(size, size, size) for size in sizes)


def curve(ms_per_row: dict[int, float], model: str = "picto_painter_unet") -> Curve:
    return Curve(model, "d" * 64, "a GPU", 1, "shape", ms_per_row)


def with_sizes(*sizes: tuple[int, int]) -> Family:
    return FAMILY.model_copy(update={"painter": FAMILY.painter.model_copy(update={"sizes": sizes})})


def free_unet() -> ModelFolder:
    """The embedded denoiser, as it would be with free heights and widths."""
    model = open_model(ROOT, "picto_painter_unet")
    sample, *others = model.inputs
    return replace(model, inputs=(replace(sample, shape=(8, -1, -1)), *others))


@pytest.mark.parametrize("name", FAMILY.models)
def test_every_graph_of_the_embedded_family_takes_its_profiles(name: str) -> None:
    model = open_model(ROOT, name)
    onnx.checker.check_model(str(model.model_path))
    session = open_session("onnx", model)
    for profile in checked_profiles(ROOT, FAMILY, name):
        for end in Span._fields:  # what it computes at each end, an engine can be built for
            sizes = {tensor: [getattr(span, end) for span in spans] for tensor, spans in profile.items()}
            exactly = {tensor: tuple(Span(size, size, size) for size in axes) for tensor, axes in sizes.items()}
            session.run(example(exactly, model, sizes[model.inputs[0].name][0]))


def test_a_fixed_graph_varies_in_its_rows_alone() -> None:
    (profile,) = profiles_of(open_model(ROOT, "picto_painter_unet"), FAMILY, Span(1, 4, 32))
    assert profile == {name: (Span(1, 4, 32), *fixed(*sizes)) for name, sizes in FIXED.items()}


def test_a_free_graph_takes_every_size_of_the_family_and_is_best_at_the_first() -> None:
    (profile,) = profiles_of(free_unet(), with_sizes((64, 96), (128, 32)), UNMEASURED)
    assert profile["sample"] == (UNMEASURED, Span(8, 8, 8), Span(4, 12, 12), Span(8, 8, 16))


def test_a_decoder_has_one_profile_for_a_token_and_one_for_a_prefix() -> None:
    decode, prefill = profiles_of(open_model(ROOT, "picto_captioner_decoder"), FAMILY, UNMEASURED)
    assert decode["input_ids"] == (UNMEASURED, Span(1, 1, 1))
    assert prefill["input_ids"] == prefill["position_ids"] == (UNMEASURED, Span(1, 16, 64))
    past = (UNMEASURED, *fixed(3, 4), Span(16, 64, 64), *fixed(32))
    assert decode["past_keys"] == decode["past_values"] == prefill["past_keys"] == past
    assert decode["cross_keys"] == (UNMEASURED, *fixed(3, 4, 65, 32))


def test_an_axis_that_nothing_explains_is_refused() -> None:
    unet = free_unet()
    model = replace(unet, inputs=(replace(unet.inputs[0], shape=(8, 8, -1)),))
    with pytest.raises(BadModel, match="free axes of 'sample'"):
        profiles_of(model, FAMILY, UNMEASURED)


def scaler(width: int = 3) -> Profile:
    return {"x": (UNMEASURED, Span(1, 2, 4), *fixed(width)), "scale": (UNMEASURED,)}


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (scaler(width=4), "x has an axis of"),
        ({**scaler(), "scale": (Span(1, 1, 2),)}, "scale has an axis of"),  # both are called batch
        ({**scaler(), "scale": (UNMEASURED, UNMEASURED)}, "scale has 1 axes, not 2"),
        ({"x": scaler()["x"]}, "its inputs are"),
    ],
)
def test_a_profile_that_the_graph_does_not_take_is_refused(tmp_path: Path, profile: Profile, words: str) -> None:
    path = write_model(tmp_path, "scaler", SCALER_CONFIG, scaler_graph()) / "1" / "model.onnx"
    check_profiles([scaler()], path)
    with pytest.raises(BadModel, match=words):
        check_profiles([scaler(), profile], path)


def test_a_graph_of_onnx_runtime_s_own_nodes_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    graph = scaler_graph()
    graph.graph.node[-1].op_type, graph.graph.node[-1].domain = "MatMulNBits", "com.microsoft"
    path = write_model(tmp_path, "scaler", SCALER_CONFIG, graph) / "1" / "model.onnx"
    with pytest.raises(BadModel, match="does not know MatMulNBits") as refused:
        check_profiles([scaler()], path)
    assert refused.value.reason == "ONNX_UNSUPPORTED"


@pytest.mark.parametrize(
    ("ms_per_row", "rows"),
    [
        ({1: 4.0, 2: 2.0, 4: 1.0, 8: 1.0}, Span(1, 4, 8)),  # the knee, and all that was measured
        ({1: 4.0, 2: 2.0, 4: 1.0}, Span(1, 4, 8)),  # larger ones might pay still
        ({1: 1.0, 2: 1.0, 64: 0.5}, Span(1, 32, 32)),  # as many as the model takes
    ],
)
def test_rows_follow_what_was_measured(ms_per_row: dict[int, float], rows: Span) -> None:
    assert rows_of(curve(ms_per_row), 32) == rows


def test_rows_where_nothing_was_measured() -> None:
    assert rows_of(None, 64) == UNMEASURED
    assert rows_of(None, 4) == Span(1, 4, 4)


def test_curves_of_engines_go_before_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine, eager = curve({1: 1.0}), curve({1: 2.0})
    save(cache_path("picto", "tensorrt", 1), [engine])
    save(cache_path("picto", "torch", 1), [eager, curve({1: 3.0}, "other")])
    assert measured_curves(FAMILY) == {engine.model: engine, "other": curve({1: 3.0}, "other")}
