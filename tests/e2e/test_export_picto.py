"""picto, exported again from its checkpoints, is what is shipped: the same graphs but for rounding, and the same words.

A test for each graph, so that none takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnxruntime  # noqa: E402

from captory_engine.family import find_family  # noqa: E402
from captory_engine.repository import default_repository, list_models, open_model  # noqa: E402
from captory_engine.sessions.torch_checkpoints import default_checkpoints  # noqa: E402
from captory_engine.tokenizer import PromptTokenizer, Tokenizer  # noqa: E402
from captory_export.architectures import Role, find_architecture  # noqa: E402
from captory_export.checkpoints import find  # noqa: E402
from captory_export.graphs import example  # noqa: E402
from captory_export.model_folders import export_part  # noqa: E402
from captory_export.picto_reader import export_reader  # noqa: E402
from captory_export.precision import Precision  # noqa: E402

pytestmark = pytest.mark.export

SHIPPED = default_repository()
CHECKPOINTS = default_checkpoints() / "picto"
PARTS: dict[Role, tuple[str, ...]] = {
    "captioner": ("vision", "decoder"),
    "writer": ("decoder",),
    "painter": ("text_encoder", "unet", "vae_decoder"),
}
COPIED = ("tokenizer.json", "labels.json")
TOLERANCE = 1e-4  # of the largest value: another build may add in another order
NUM_ROWS = 3


def opened(role: Role) -> Any:
    checkpoint = find(str(CHECKPOINTS / role))
    return find_architecture(role, checkpoint)(checkpoint)


def assert_same(name: str, root: Path, inputs: Mapping[str, NDArray[Any]]) -> None:
    """The model in `root` takes, gives and brings what the shipped one does."""
    shipped, again = open_model(SHIPPED, name), open_model(root, name)
    assert (again.inputs, again.outputs, again.max_batch) == (shipped.inputs, shipped.outputs, shipped.max_batch)
    for file in COPIED:
        assert (again.path / file).is_file() == (shipped.path / file).is_file()
        if (shipped.path / file).is_file():
            assert (again.path / file).read_bytes() == (shipped.path / file).read_bytes()
    wanted, found = (run(model.model_path, inputs) for model in (shipped, again))
    for spec, one, other in zip(shipped.outputs, wanted, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=TOLERANCE * max(1.0, np.abs(one).max()), err_msg=spec.name)


def run(path: Path, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


@pytest.mark.parametrize(("role", "suffix"), [(role, suffix) for role, parts in PARTS.items() for suffix in parts])
def test_a_graph_is_the_shipped_one(role: Role, suffix: str, tmp_path: Path) -> None:
    [part] = (part for part in opened(role).parts() if part.suffix == suffix)
    name = f"picto_{role}_{suffix}"
    export_part(part, tmp_path / name, Precision.FP32)
    assert_same(name, tmp_path, {key: example(value, NUM_ROWS).numpy() for key, value in part.graph.inputs.items()})


def test_the_reader_is_the_shipped_one(tmp_path: Path) -> None:
    export_reader(CHECKPOINTS / "reader", tmp_path / "picto_reader")
    assert_same("picto_reader", tmp_path, {"pixel_values": torch.randn(NUM_ROWS, 3, 64, 64).numpy()})


def test_no_model_is_left_out() -> None:
    names = {f"picto_{role}_{suffix}" for role, parts in PARTS.items() for suffix in parts}
    assert {*list_models(SHIPPED)} == {*names, "picto_reader"}


def test_the_family_file_says_the_same() -> None:
    shipped, painter = find_family(SHIPPED).family, opened("painter")
    assert opened("captioner").section("picto_captioner") == shipped.captioner
    assert opened("writer").section("picto_writer") == shipped.writer
    section = painter.section("picto_painter")
    assert section.model_copy(update={"pad_id": None}) == shipped.painter
    tokenizer = Tokenizer(SHIPPED / shipped.painter.tokenizer)
    told, own = (PromptTokenizer(tokenizer, section.max_tokens, pad_id) for pad_id in (section.pad_id, None))
    np.testing.assert_array_equal(told.encode("a red mug").ids, own.encode("a red mug").ids)
    words = painter.checkpoint.own_settings()
    assert (words["name"], words["description"]) == (shipped.name, shipped.description)
    assert words["in_world_only"] == shipped.in_world_only
