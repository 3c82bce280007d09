"""Exported token decoders do what the checkpoints do, whatever stands at masked positions and whoever rides along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from captory_export import blip, qwen2  # noqa: E402
from captory_export.parity import Decoded, SlotTable, cache_shape, compare, decode_greedily, joined  # noqa: E402

Feed = dict[str, NDArray[Any]]
VOCAB, EOS_ID, MAX_POSITIONS = 50, 2, 24
PROMPTS = [[1, 7], [1, 9, 30, 31, 8], [1], [1, 12, 13, 14, 15, 16, 17, 18]]


@pytest.fixture(scope="module")
def writer() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        pad_token_id=0,
    )
    return transformers.Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def captioner() -> Any:
    torch.manual_seed(0)
    shared = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "projection_dim": 32}
    text = {
        **shared,
        "vocab_size": VOCAB,
        "encoder_hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.4,
        "bos_token_id": 1,
        "eos_token_id": EOS_ID,
        "sep_token_id": EOS_ID,
        "pad_token_id": 0,
    }
    vision = {**shared, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8, "initializer_range": 0.4}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=32
    )
    return transformers.BlipForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def writer_graph(writer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("writer") / "model.onnx"
    qwen2.export_decoder(writer, path)
    return path


@pytest.fixture(scope="module")
def captioner_graphs(captioner: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder: Path = tmp_path_factory.mktemp("captioner")
    blip.export_vision(captioner, folder / "vision.onnx")
    blip.export_decoder(captioner, folder / "decoder.onnx")
    return folder / "vision.onnx", folder / "decoder.onnx"


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_writer_writes_what_the_checkpoint_writes(writer: Any, writer_graph: Path) -> None:
    report = qwen2.check(writer, writer_graph, PROMPTS, max_new_tokens=12)
    assert report["passed"], report


def test_the_captioner_writes_what_the_checkpoint_writes(captioner: Any, captioner_graphs: tuple[Path, Path]) -> None:
    report = blip.check(captioner, *captioner_graphs, prefixes=[[1, 3], [1, 4]], num_images=4)
    assert report["passed"], report


def test_masked_positions_do_not_matter(writer_graph: Path) -> None:
    graph = session(writer_graph)
    table = SlotTable(2, cache_shape(graph), MAX_POSITIONS)
    table.lengths[:] = (3, 5)
    feed: Feed = {"input_ids": np.array([[7], [8]]), "position_ids": table.lengths[:, None], **table.inputs()}
    wanted = graph.run(None, feed)
    for row, length in enumerate(table.lengths):
        table.keys[row, :, :, length:] = 1e4
        table.values[row, :, :, length:] = -1e4
    for left, right in zip(wanted, graph.run(None, feed | table.inputs()), strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_empty_past_equals_a_masked_past(writer_graph: Path) -> None:
    graph = session(writer_graph)
    table = SlotTable(1, cache_shape(graph), MAX_POSITIONS)
    feed: Feed = {"input_ids": np.array([PROMPTS[1]]), "position_ids": np.arange(5)[None]}
    masked = graph.run(None, feed | table.inputs())
    empty = {name: value[..., :0] if value.ndim == 2 else value[:, :, :, :0] for name, value in table.inputs().items()}
    for left, right in zip(masked, graph.run(None, feed | empty), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_a_row_decodes_alone_as_in_company(writer_graph: Path) -> None:
    graph = session(writer_graph)
    limits: dict[str, Any] = {"max_new_tokens": 10, "max_positions": MAX_POSITIONS, "eos_id": EOS_ID}
    together = decode_greedily(graph, PROMPTS, **limits)
    alone = joined(decode_greedily(graph, [prompt], **limits) for prompt in PROMPTS)
    assert together.ids == alone.ids


def test_a_difference_fails_the_report() -> None:
    logits = np.zeros((1, 3), dtype=np.float32)
    wanted = Decoded([[2]], [logits])
    assert compare(wanted, wanted)["passed"]
    assert not compare(wanted, Decoded([[1]], [logits]))["passed"]
    assert not compare(wanted, Decoded([[2]], [logits + 0.01]))["passed"]
