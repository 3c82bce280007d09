"""Adapters are merged into exactly the weights that they are of, times their scale; what cannot be is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import painter_twins as twins  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from captory_engine.errors import BadModel  # noqa: E402
from captory_export.checkpoints import PARTS, Checkpoint  # noqa: E402
from captory_export.lora import Lora, merged  # noqa: E402

Tensors = dict[str, NDArray[Any]]
RANK = 2
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"
WORDS = "text_model.encoder.layers.0.self_attn.q_proj"
UNET = {f"unet.{ATTENTION}": 16}
TWINS: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": twins.stable_diffusion,
    "stable-diffusion-xl": twins.stable_diffusion_xl,
    "stable-diffusion-3-without-t5": lambda folder: twins.stable_diffusion_3(folder, with_t5=False),
}
LAYERS: dict[str, Mapping[str, int]] = {  # square layers by their width
    "stable-diffusion": UNET,
    "stable-diffusion-xl": {**UNET, f"text_encoder.{WORDS}": 16, f"text_encoder_2.{WORDS}": 24},
    "stable-diffusion-3-without-t5": {"transformer.transformer_blocks.0.attn.to_q": 32, f"text_encoder_2.{WORDS}": 16},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A twin by its name, made once."""
    made: dict[str, Checkpoint] = {}

    def checkpoint(name: str) -> Checkpoint:
        if name not in made:
            made[name] = Checkpoint(TWINS[name](tmp_path_factory.mktemp(name)), name, "revision", "")
        return made[name]

    return checkpoint


def adapter(file: Path, layers: Mapping[str, int]) -> Tensors:
    """Write an adapter as diffusers' training scripts do; returns what it adds, by weight."""
    rng, tensors, added = np.random.default_rng(0), {}, {}
    for layer, width in layers.items():
        down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((RANK, width), (width, RANK)))
        infix = "lora_linear_layer" if layer.startswith("text_encoder") else "lora"
        tensors |= {f"{layer}.{infix}.down.weight": down, f"{layer}.{infix}.up.weight": up}
        added[f"{layer}.weight"] = up @ down
    save_file(tensors, file)
    return added


def weights(folder: Path) -> Tensors:
    """All weights of a pipeline, as PART.NAME."""
    files = [(part, file) for part in PARTS for file in (folder / part).glob("*.safetensors")]
    return {f"{part}.{name}": value for part, file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("name", "layers"),
    [*LAYERS.items(), ("stable-diffusion", {f"text_encoder.{WORDS}": 16})],
    ids=[*LAYERS, "text-encoder-alone"],
)
def test_adapters_are_added_to_what_they_are_of(
    checkpoints: Callable[[str], Checkpoint], name: str, layers: Mapping[str, int], tmp_path: Path
) -> None:
    added = adapter(tmp_path / "style.safetensors", layers)
    before = weights(checkpoints(name).path)
    loras = [Lora(tmp_path / "style.safetensors", 0.75), Lora(tmp_path / "style.safetensors", -0.25)]
    with merged(checkpoints(name), loras, tmp_path) as checkpoint:
        after = weights(checkpoint.path)
    assert after.keys() == before.keys()
    assert added.keys() <= before.keys()
    for key, value in before.items():
        np.testing.assert_allclose(after[key], value + 0.5 * added.get(key, 0), atol=1e-5, err_msg=key)
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"unet.nowhere.lora.down.weight": (2, 16), "unet.nowhere.lora.up.weight": (16, 2)}, "is no adapter of"),
        ({"text_encoder.nowhere.lora_linear_layer.down.weight": (2, 16)}, "is no adapter of"),
        (
            {f"unet.{ATTENTION}.lora.down.weight": (2, 99), f"unet.{ATTENTION}.lora.up.weight": (99, 2)},
            "is no adapter of",
        ),
        ({"another.weight": (2, 2)}, "is no adapter of"),
        ({f"unet.{ATTENTION}.lora.down.weight": (2, 16), f"unet.{ATTENTION}.dora_scale": (16,)}, "is a DoRA"),
    ],
)
def test_adapters_of_something_else_are_refused(
    checkpoints: Callable[[str], Checkpoint], tensors: Mapping[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "other.safetensors")
    loras = [Lora(tmp_path / "other.safetensors")]
    with (
        pytest.raises(BadModel, match=words),
        merged(checkpoints("stable-diffusion"), loras, tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left"), OSError(errno.ENOSPC, "No space left")])
def test_a_disk_that_fills_up_while_merging_is_told(
    checkpoints: Callable[[str], Checkpoint], error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object, **__: object) -> None:
        raise error

    adapter(tmp_path / "style.safetensors", UNET)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "save_pretrained", save)
    with (
        pytest.raises(BadModel, match=r"free some room there: .*No space left") as refused,
        merged(checkpoints("stable-diffusion"), [Lora(tmp_path / "style.safetensors")], tmp_path),
    ):
        pass
    assert refused.value.reason == "DISK_FULL"
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]


@pytest.mark.parametrize("scale", ["0", "nan", "inf", "much", ""])
def test_scales_that_merge_nothing_are_refused(scale: str, tmp_path: Path) -> None:
    adapter(tmp_path / "style.safetensors", UNET)
    assert Lora.parse(f"{tmp_path / 'style.safetensors'}:-0.5").scale == -0.5
    with pytest.raises(BadModel, match="scale"):
        Lora.parse(f"{tmp_path / 'style.safetensors'}:{scale}")


def test_an_adapter_is_recorded_by_its_digest(tmp_path: Path) -> None:
    adapter(tmp_path / "style.safetensors", UNET)
    record = Lora.parse(str(tmp_path / "style.safetensors")).record()
    assert (record["file"], record["scale"], len(record["sha256"])) == ("style.safetensors", 1.0, 64)
    adapter(tmp_path / "style.safetensors", {f"text_encoder.{WORDS}": 16})
    assert Lora.parse(str(tmp_path / "style.safetensors")).record()["sha256"] != record["sha256"]
