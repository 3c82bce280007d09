"""Exported captioners and writers do what the checkpoints do, whatever stands at masked positions and rides along.

The checkpoints are twins: the real configuration classes, small, with random weights.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from word_twins import (  # noqa: E402
    BOS_ID,
    CAPTIONERS,
    EOS_ID,
    LLAMA3,
    MAKERS,
    MAX_POSITIONS,
    OWN_SETTINGS,
    PAD_ID,
    SHAPE,
    VOCAB,
    WORDS,
    qwen2,
    save,
    write,
)

from captory_engine import family  # noqa: E402
from captory_engine.errors import BadModel  # noqa: E402
from captory_export.architectures import Role, find_architecture  # noqa: E402
from captory_export.captioners.blip import open_blip  # noqa: E402
from captory_export.captioners.blip2 import open_blip2  # noqa: E402
from captory_export.captioners.vit_gpt2 import open_vit_gpt2  # noqa: E402
from captory_export.checkpoints import Checkpoint  # noqa: E402
from captory_export.decoding import (  # noqa: E402
    Decoded,
    SlotTable,
    cache_shape,
    compare_texts,
    decode_greedily,
    joined,
    open_graph,
)
from captory_export.graphs import export_graph  # noqa: E402
from captory_export.model_folders import export_part  # noqa: E402
from captory_export.precision import Precision, faults  # noqa: E402
from captory_export.writers.language_model import COMPLETION, REQUEST, LanguageModelGraph, open_language_model  # noqa: E402

pytestmark = pytest.mark.export

Feed = dict[str, NDArray[Any]]
PROMPTS = [[1, 7], [1, 9, 30, 31, 8], [1], [1, 12, 13, 14, 15, 16, 17, 18]]
LONGROPE = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
OPENERS: dict[str, Callable[[Checkpoint], Any]] = {
    "blip": open_blip,
    "blip-2": open_blip2,
    "vit-gpt2": open_vit_gpt2,
    "qwen2": open_language_model,
    "llama": open_language_model,
}


class Exported(NamedTuple):
    checkpoint: Checkpoint
    opened: Any
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A checkpoint by its name in `MAKERS`, made once."""
    made: dict[str, Checkpoint] = {}

    def twin(name: str) -> Checkpoint:
        if name not in made:
            made[name] = Checkpoint(save(name, tmp_path_factory.mktemp(name)), name, "revision", "")
        return made[name]

    return twin


@pytest.fixture(scope="module")
def exports(twins: Callable[[str], Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """A twin with its models, exported once."""
    made: dict[str, Exported] = {}

    def exported(name: str) -> Exported:
        if name not in made:
            opened, root = OPENERS[name](twins(name)), tmp_path_factory.mktemp(f"{name}-models")
            for part in opened.parts():
                export_graph(part.graph, root / part.suffix / "1" / "model.onnx")
            made[name] = Exported(twins(name), opened, {path.name: path for path in root.iterdir()})
        return made[name]

    return exported


def edited(checkpoint: Checkpoint, folder: Path, file: str, changes: dict[str, Any]) -> Checkpoint:
    """A copy in `folder` with other settings in one of its JSON files; sections are merged."""
    shutil.copytree(checkpoint.path, folder, dirs_exist_ok=True)
    settings = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    (folder / file).write_text(json.dumps(settings))
    return checkpoint._replace(path=folder)


def reweighted(checkpoint: Checkpoint, folder: Path, change: Callable[[dict[str, Any]], object]) -> Checkpoint:
    """A copy in `folder` with other weights."""
    tensors = load_file(checkpoint.path / "model.safetensors")
    change(tensors)
    shutil.copytree(checkpoint.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return checkpoint._replace(path=folder)


def crossed(graph: Any, rows: int) -> Feed:
    """Cross keys and values where the decoder takes them."""
    rng = np.random.default_rng(1)
    shapes = {value.name: value.shape[1:] for value in graph.get_inputs() if value.name.startswith("cross")}
    return {name: rng.normal(size=(rows, *shape)).astype(np.float32) for name, shape in shapes.items()}


def reason(act: Callable[[], object]) -> str:
    with pytest.raises(BadModel) as refused:
        act()
    return refused.value.reason


@pytest.mark.parametrize("name", MAKERS)
def test_models_write_what_the_checkpoint_writes(exports: Callable[[str], Exported], name: str) -> None:
    _, opened, folders = exports(name)
    figures = opened.check(folders)
    assert faults(figures, Precision.FP32) == [], figures
    assert figures["tokens"] > figures["texts"] >= 3


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("blip", "text_decoder.bert.encoder.layer.1.crossattention.self.value.bias"),
        ("blip-2", "qformer.encoder.layer.1.intermediate_query.dense.bias"),
        ("vit-gpt2", "decoder.transformer.h.1.crossattention.q_attn.bias"),
        ("qwen2", "model.layers.0.self_attn.v_proj.bias"),
        ("llama", "model.layers.1.mlp.down_proj.bias"),
    ],
)
def test_other_weights_are_found_out(
    exports: Callable[[str], Exported], name: str, weight: str, tmp_path: Path
) -> None:
    checkpoint, _, folders = exports(name)
    other = reweighted(checkpoint, tmp_path, lambda tensors: tensors.update({weight: tensors[weight] + 0.5}))
    assert faults(OPENERS[name](other).check(folders), Precision.FP32)


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captioners_have_one_contract(exports: Callable[[str], Exported], name: str) -> None:
    _, opened, folders = exports(name)
    vision, decoder = open_graph(folders["vision"]), open_graph(folders["decoder"])
    given = {value.name: value.shape[1:] for value in vision.get_outputs()}
    taken = {value.name: value.shape[1:] for value in decoder.get_inputs()}
    assert [value.name for value in vision.get_inputs()] == ["pixel_values"]
    assert list(given) == ["cross_keys", "cross_values"]
    assert list(taken) == ["input_ids", "position_ids", "past_mask", "past_keys", "past_values", *given]
    assert [value.name for value in decoder.get_outputs()] == ["logits", "new_keys", "new_values"]
    assert given == {name: taken[name] for name in given}
    assert cache_shape(decoder) == opened.cache


@pytest.mark.parametrize("name", MAKERS)
def test_masked_positions_do_not_matter(exports: Callable[[str], Exported], name: str) -> None:
    graph = open_graph(exports(name).folders["decoder"])
    table = SlotTable(2, cache_shape(graph), 8)
    table.lengths[:] = (3, 5)
    feed: Feed = {"input_ids": np.array([[7], [8]]), "position_ids": table.lengths[:, None], **crossed(graph, 2)}
    wanted = graph.run(None, feed | table.inputs())
    for row, length in enumerate(table.lengths):
        table.keys[row, :, :, length:] = 1e4
        table.values[row, :, :, length:] = -1e4
    for left, right in zip(wanted, graph.run(None, feed | table.inputs()), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_past_equals_a_masked_past(exports: Callable[[str], Exported], name: str) -> None:
    graph = open_graph(exports(name).folders["decoder"])
    table = SlotTable(1, cache_shape(graph), 8)
    feed: Feed = {"input_ids": np.array([PROMPTS[1]]), "position_ids": np.arange(5)[None], **crossed(graph, 1)}
    masked = graph.run(None, feed | table.inputs())
    empty = {key: value[..., :0] if value.ndim == 2 else value[:, :, :, :0] for key, value in table.inputs().items()}
    for left, right in zip(masked, graph.run(None, feed | empty), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_decodes_alone_as_in_company(exports: Callable[[str], Exported], name: str) -> None:
    graph = open_graph(exports(name).folders["decoder"])
    limits: dict[str, Any] = {"max_new_tokens": 6, "max_positions": 16, "eos_id": EOS_ID}
    cross = crossed(graph, len(PROMPTS))
    together = decode_greedily(graph, PROMPTS, cross=cross, **limits)
    own = [{key: value[row : row + 1] for key, value in cross.items()} for row in range(len(PROMPTS))]
    alone = joined(decode_greedily(graph, [ids], cross=one, **limits) for ids, one in zip(PROMPTS, own, strict=True))
    assert together.ids == alone.ids


def test_int8_is_of_a_decoders_matrices_and_rows_stay_apart(
    twins: Callable[[str], Checkpoint], exports: Callable[[str], Exported], tmp_path: Path
) -> None:
    (part,) = open_language_model(twins("llama")).parts()
    report = export_part(part, tmp_path / "some_decoder", Precision.INT8)
    assert report["precision"] == "int8"
    assert report["max_abs_difference"] > 0
    folders = tmp_path / "some_decoder", exports("llama").folders["decoder"]
    small, full = (onnx.load(folder / "1" / "model.onnx").graph for folder in folders)
    assert sum(node.op_type == "MatMulNBits" for node in small.node) == 2 * 7 + 1  # two layers and the head
    small_bytes, full_bytes = (sum(len(weight.raw_data) for weight in one.initializer) for one in (small, full))
    assert small_bytes < 0.6 * full_bytes
    graph = open_graph(tmp_path / "some_decoder")
    limits: dict[str, Any] = {"max_new_tokens": 6, "max_positions": 16, "eos_id": EOS_ID}
    together = decode_greedily(graph, PROMPTS, **limits)
    assert together.ids == joined(decode_greedily(graph, [prompt], **limits) for prompt in PROMPTS).ids


@pytest.mark.parametrize("name", MAKERS)
def test_int8_is_of_all_of_a_decoders_matrices(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, of_gpt2 = {"hidden_size": 256, "intermediate_size": 512}, transformers.GPT2Config
    for key, size in wide.items():
        monkeypatch.setitem(SHAPE, key, size)
    monkeypatch.setattr(transformers, "GPT2Config", lambda **told: of_gpt2(**{**told, "n_embd": 256}))
    torch.manual_seed(0)
    folder = write(name, MAKERS[name](), tmp_path / "checkpoint")
    opened = OPENERS[name](Checkpoint(folder, name, "revision", ""))
    [part] = (part for part in opened.parts() if part.suffix == "decoder")
    export_graph(part.graph, tmp_path / "single.onnx")
    report = export_part(part, tmp_path / "some_decoder", Precision.INT8)  # raises beyond the bounds
    assert report["max_abs_difference"] > 0
    small = tmp_path / "some_decoder" / "1" / "model.onnx"
    assert small.stat().st_size < 0.4 * (tmp_path / "single.onnx").stat().st_size
    graph = onnx.load(small).graph
    constants = {constant.name for constant in graph.initializer if len(constant.dims) == 2}
    users = {node.op_type for node in graph.node if constants.intersection(node.input)}
    assert not users & {"Gemm", "MatMul", "Transpose"}


def test_weights_that_lie_beside_a_graph_are_quantised_too(
    twins: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1)
    (part,) = open_language_model(twins("llama")).parts()
    assert export_part(part, tmp_path / "some_decoder", Precision.INT8)["precision"] == "int8"
    assert {path.name for path in (tmp_path / "some_decoder" / "1").iterdir()} == {"model.onnx", "model.onnx.data"}


def test_logits_are_compared_up_to_the_first_other_token() -> None:
    logits = np.array([[0, 1, 2], [0, 0, 4]], dtype=np.float32)
    wanted = Decoded([[2, 2]], [logits])
    same = compare_texts(wanted, wanted)
    assert (same["same_texts"], same["difference"]) == (1.0, 0.0)
    behind = compare_texts(wanted, Decoded([[1, 2]], [logits + np.array([[0.5], [99]], dtype=np.float32)]))
    assert (behind["same_texts"], behind["difference"]) == (0.0, 0.25)
    assert faults(compare_texts(wanted, Decoded([[2, 2]], [logits + 0.01])), Precision.FP32)


@pytest.mark.parametrize("name", MAKERS)
def test_sections_hold(twins: Callable[[str], Checkpoint], name: str) -> None:
    section = OPENERS[name](twins(name)).section("some")
    assert isinstance(section, family.Captioner if name in CAPTIONERS else family.Writer)
    assert (section.architecture, section.decoder) == (name, "some_decoder")
    assert section.tokenizer == "some_decoder/tokenizer.json"
    assert (section.eos_id, section.pad_id) == (EOS_ID, EOS_ID if name == "vit-gpt2" else PAD_ID)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("qwen2", {"templates": {"rewrite": "no place for the text"}}, "must stand there exactly once"),
        ("qwen2", {"temperature": -1.0}, "temperature: "),
        ("blip", {"max_new_tokens": 0}, "max_new_tokens: "),
        ("blip", {"prefixes": {"short": [1], "long": [-1]}}, "prefixes.long.0: "),
    ],
)
def test_what_the_engine_would_not_take_is_told_by_its_field(
    twins: Callable[[str], Checkpoint], name: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    shutil.copytree(twins(name).path, tmp_path, dirs_exist_ok=True)
    own = {**OWN_SETTINGS, **changes} if name == "qwen2" else changes
    (tmp_path / "captory.json").write_text(json.dumps(own))
    opened = OPENERS[name](twins(name)._replace(path=tmp_path))
    with pytest.raises(BadModel, match=f"{name} is nothing that the engine can serve: .*{re.escape(words)}"):
        opened.section("some")


@pytest.mark.parametrize(
    ("role", "name", "head"),
    [
        ("captioner", "blip", "BlipForQuestionAnswering"),
        ("captioner", "blip-2", "Blip2ForImageTextRetrieval"),
        ("writer", "llama", "LlamaForSequenceClassification"),
    ],
)
def test_other_heads_of_an_architecture_are_refused(
    twins: Callable[[str], Checkpoint], role: Role, name: str, head: str, tmp_path: Path
) -> None:
    assert find_architecture(role, twins(name)) is OPENERS[name]
    other = edited(twins(name), tmp_path, "config.json", {"architectures": [head]})
    with pytest.raises(BadModel, match=f"is a {head}; as {role} of architecture '{name}' it must be a "):
        find_architecture(role, other)


@pytest.mark.parametrize(
    ("name", "long", "positions", "mean", "resample"),
    [
        ("blip", "a detailed photo of", MAX_POSITIONS, 0.48145466, "bicubic"),
        ("blip-2", "a photo of", MAX_POSITIONS - 4, 0.48145466, "bicubic"),
        ("vit-gpt2", "", MAX_POSITIONS, 0.5, "bilinear"),
    ],
)
def test_captioners_not_made_for_captory(
    twins: Callable[[str], Checkpoint], name: str, long: str, positions: int, mean: float, resample: str
) -> None:
    section = OPENERS[name](twins(name)).section("some")
    lead_in = [WORDS.index(word) for word in long.split()]
    assert section.prefixes == {"short": (BOS_ID,), "long": (BOS_ID, *lead_in)}
    assert section.max_positions == positions
    assert section.max_new_tokens == positions - 1 - len(lead_in)
    assert section.image_mean[0] == mean
    assert (section.stretch, section.resample) == (True, resample)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("preprocessor_config.json", {"do_center_crop": True, "resample": 2}, (False, "bilinear")),
        ("preprocessor_config.json", {"resample": 1}, (True, "lanczos")),
        ("captory.json", {"max_new_tokens": 4}, (False, "bicubic")),
    ],
)
def test_photographs_are_stretched_or_cropped_as_in_training(
    twins: Callable[[str], Checkpoint], file: str, changes: dict[str, Any], expected: tuple[bool, str], tmp_path: Path
) -> None:
    section = open_blip(edited(twins("blip"), tmp_path, file, changes)).section("some")
    assert (section.stretch, section.resample) == expected


def test_a_writer_made_for_captory_says_how_it_is_asked(twins: Callable[[str], Checkpoint]) -> None:
    section = open_language_model(twins("qwen2")).section("some").model_dump()
    assert {key: section[key] for key in OWN_SETTINGS if key in section} == {
        key: value for key, value in OWN_SETTINGS.items() if key != "examples"
    }


def test_a_writer_without_a_chat_template_goes_on(twins: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    plain = open_language_model(twins("llama")).section("some")
    assert plain.templates == {"rewrite": f"<bos>{COMPLETION}"}
    assert (plain.temperature, plain.top_k) == (0.7, 40)
    own = edited(twins("llama"), tmp_path, "generation_config.json", {"temperature": 0.3, "top_k": 0})
    section = open_language_model(own).section("some")
    assert (section.temperature, section.top_k) == (0.3, None)


def test_a_chat_is_asked_in_a_turn_and_ends_with_it(twins: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content | trim }}]{% endfor %}{{ add_generation_prompt }}"
    chat = edited(twins("llama"), tmp_path / "chat", "tokenizer_config.json", {"chat_template": template})
    chat = edited(chat, tmp_path / "ends", "config.json", {"eos_token_id": [9, EOS_ID]})
    section = open_language_model(chat).section("some")
    assert section.templates == {"rewrite": f"<bos>[{REQUEST}]True"}
    assert section.eos_id == EOS_ID


def test_a_chat_is_told_the_same_date_every_day(twins: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ messages[0].content }}"
    chat = edited(twins("llama"), tmp_path, "tokenizer_config.json", {"chat_template": template})
    assert open_language_model(chat).section("some").templates == {"rewrite": f"26 Jul 2024{REQUEST}"}


@pytest.mark.parametrize("template", ["silent", "{{ raise_exception('no users') }}", "{% broken"])
def test_a_chat_template_that_does_not_hold(twins: Callable[[str], Checkpoint], template: str, tmp_path: Path) -> None:
    chat = edited(twins("llama"), tmp_path, "tokenizer_config.json", {"chat_template": template})
    assert reason(lambda: open_language_model(chat)) == "CHAT_TEMPLATE"


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        LLAMA3,
    ],
)
def test_scaled_rotary_positions(scaling: dict[str, Any] | None) -> None:
    torch.manual_seed(0)
    model = qwen2(rope_scaling=scaling and dict(scaling), rope_theta=100.0, initializer_range=0.4).eval()
    ids, none = torch.randint(VOCAB, (2, 40)), torch.zeros(2, 2, 2, 0, 8)
    with torch.no_grad():
        logits, _, _ = LanguageModelGraph(model)(ids, torch.arange(40).expand(2, -1), torch.zeros(2, 0), none, none)
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "file", "changes", "expected"),
    [
        ("qwen2", "config.json", {"layer_types": ["full_attention", "sliding_attention"]}, "UNSUPPORTED"),
        ("llama", "config.json", {"rope_scaling": LONGROPE}, "UNSUPPORTED"),
        ("llama", "config.json", {"quantization_config": {"quant_method": "gptq"}}, "QUANTISED"),
        ("qwen2", "config.json", {"num_hidden_layers": 3}, "CHECKPOINT_CORRUPT"),
        ("blip", "config.json", {"text_config": {"position_embedding_type": "relative_key"}}, "UNSUPPORTED"),
        ("blip", "preprocessor_config.json", {"size": {"height": 32, "width": 32}}, "IMAGE_SIZE"),
        ("blip", "preprocessor_config.json", {"do_rescale": False}, "IMAGE_RANGE"),
        ("blip", "preprocessor_config.json", {"resample": 0}, "IMAGE_RESAMPLE"),
        ("blip-2", "config.json", {"text_config": {"model_type": "t5"}}, "UNSUPPORTED"),
        ("blip-2", "config.json", {"text_config": {"do_layer_norm_before": False}}, "UNSUPPORTED"),
        ("vit-gpt2", "config.json", {"encoder": {"model_type": "deit"}}, "UNSUPPORTED"),
        ("vit-gpt2", "config.json", {"decoder": {"scale_attn_by_inverse_layer_idx": True}}, "UNSUPPORTED"),
    ],
)
def test_what_the_graphs_would_get_wrong_is_refused(
    twins: Callable[[str], Checkpoint], name: str, file: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    other = edited(twins(name), tmp_path, file, changes)
    assert reason(lambda: OPENERS[name](other)) == expected


def test_weights_that_are_missing_or_of_another_size(twins: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    weight = "model.layers.1.mlp.down_proj.weight"
    without = reweighted(twins("llama"), tmp_path / "without", lambda tensors: tensors.pop(weight))
    assert reason(lambda: next(open_language_model(without).parts())) == "CHECKPOINT_INCOMPLETE"
    smaller = reweighted(
        twins("llama"), tmp_path / "smaller", lambda tensors: tensors.update({weight: tensors[weight][:-1].clone()})
    )
    assert reason(lambda: next(open_language_model(smaller).parts())) == "CHECKPOINT_CORRUPT"
