"""`captory export`: checkpoints in, a repository out that the engine serves; or nothing at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnxruntime  # noqa: E402
import painter_twins  # noqa: E402
import word_twins  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from captory_client.cli import app  # noqa: E402
from captory_engine.assembly import EngineConfig, open_pipeline  # noqa: E402
from captory_engine.family import find_family  # noqa: E402
from captory_engine.items import Item, Mode, Painted, Sample  # noqa: E402
from captory_engine.repository import list_models  # noqa: E402
from captory_export.families import Wanted, export_family  # noqa: E402
from captory_export.precision import BOUNDS, Bounds, Precision  # noqa: E402

MODELS = ["captioner_decoder", "captioner_vision", "painter_text_encoder", "painter_unet", "painter_vae_decoder"]
PHOTO = io.BytesIO()
Image.fromarray(np.full((40, 30, 3), 99, np.uint8)).save(PHOTO, "PNG")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of one small checkpoint a role."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {"captioner": root / "blip", "writer": root / "llama", "painter": root / "sd"}
    word_twins.save("blip", folders["captioner"])
    word_twins.save("llama", folders["writer"])
    painter_twins.stable_diffusion(folders["painter"])
    return {role: str(folder) for role, folder in folders.items()}


def options(checkpoints: dict[str, str], out: Path, *further: str) -> list[str]:
    roles = [text for role, folder in checkpoints.items() for text in (f"--{role}", folder)]
    return ["export", *roles, "--out", str(out), *further]


def predicted(unet: Path) -> Any:
    """What a UNet tells of one latent, always the same."""
    numbers = np.random.default_rng(0)
    sample, states = (numbers.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 4, 4), (1, 12, 16)))
    inputs = {"sample": sample, "timestep": np.array([500.0], np.float32), "encoder_hidden_states": states}
    (output,) = onnxruntime.InferenceSession(str(unet / "1" / "model.onnx")).run(["out_sample"], inputs)
    return output


async def painted(repository: Path, mode: Mode) -> Painted:
    pipeline = await open_pipeline(EngineConfig(repository, num_threads=1))
    try:
        parameters = replace(pipeline.info.defaults, steps=2)
        item = Item("one", parameters, (Sample(0, 0, 7),), mode=mode, class_name="dog", image=PHOTO.getvalue())
        events = [event async for event in pipeline.run(item)]
    finally:
        await pipeline.close()
    [image] = [event for event in events if isinstance(event, Painted)]
    return image


async def test_checkpoints_become_a_family_that_is_served(checkpoints: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "models"
    done = CliRunner().invoke(app, options(checkpoints, out, "--name", "twin", "--json"))
    assert done.exit_code == 0, done.output
    assert list_models(out) == sorted(f"twin_{model}" for model in [*MODELS, "writer_decoder"])
    family = find_family(out).family
    assert (family.name, family.in_world_only) == ("twin", False)
    assert set(family.sources) == {"captioner", "writer", "painter"}
    assert len(family.sources["painter"].revision) == 64
    report = json.loads((out / "twin_painter_unet" / "report.json").read_text())
    assert report["captioner"]["end_to_end"]["same_texts"] == 1.0
    assert report["painter"]["end_to_end"]["psnr_db"] >= BOUNDS[Precision.FP32].psnr_db
    for model in list_models(out):
        assert json.loads((out / model / "parity.json").read_text())["cosine"] > 0.99999
    assert (await painted(out, Mode.CIP)).data
    assert (await painted(out, Mode.REWRITE)).data


@pytest.mark.parametrize(
    ("make", "name"), [(painter_twins.stable_diffusion_xl, "xl"), (painter_twins.stable_diffusion_3, "three")]
)
async def test_painters_of_several_texts_are_served(
    checkpoints: dict[str, str], make: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    wanted = Wanted(checkpoints["captioner"], "", str(make(tmp_path / "checkpoint")), name=name)
    export_family(wanted, tmp_path / "models", lambda _: None)
    assert find_family(tmp_path / "models").family.writer is None
    assert (await painted(tmp_path / "models", Mode.CIP)).data


def test_a_folder_that_is_there_is_left_alone(checkpoints: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    done = CliRunner().invoke(app, options(checkpoints, tmp_path))
    assert done.exit_code == 1
    assert "There already is something" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_fails_parity_leaves_nothing(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOUNDS, Precision.FP32, Bounds(difference=1.0, cosine=0.0, psnr_db=1e9, same_texts=0.0))
    done = CliRunner().invoke(app, options(checkpoints, tmp_path / "models"))
    assert done.exit_code == 1
    assert "is not what the checkpoint is: psnr_db" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model_index.json", '{"_class_name": "FluxPipeline"}', "architecture 'FluxPipeline'"),
        ("model_index.json", "{", "is not valid JSON"),
        ("unet/code.py", "print()", "would run code"),
        ("unet/diffusion_pytorch_model.safetensors", "not tensors", "no whole safetensors file"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    checkpoints: dict[str, str], file: str, content: str, words: str, tmp_path: Path
) -> None:
    painter = painter_twins.stable_diffusion(tmp_path / "checkpoint")
    (painter / file).write_text(content)
    done = CliRunner().invoke(app, options({**checkpoints, "painter": str(painter)}, tmp_path / "models"))
    assert done.exit_code == 1
    assert words in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_adapter_is_merged_and_recorded(checkpoints: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"
    adapter = {f"{layer}.lora.down.weight": torch.randn(2, 16), f"{layer}.lora.up.weight": torch.randn(16, 2)}
    save_file(adapter, tmp_path / "style.safetensors")
    roles = {role: folder for role, folder in checkpoints.items() if role != "writer"}
    plain, merged = tmp_path / "plain", tmp_path / "merged"
    for out, further in ((plain, ()), (merged, ("--lora", f"{tmp_path / 'style.safetensors'}:0.5"))):
        done = CliRunner().invoke(app, options(roles, out, "--name", "twin", *further))
        assert done.exit_code == 0, done.output
    one, other = (predicted(root / "twin_painter_unet") for root in (plain, merged))
    assert np.abs(one - other).max() > 1e-3
    [record] = find_family(merged).family.sources["painter"].loras
    assert (record.file, record.scale, len(record.sha256)) == ("style.safetensors", 0.5, 64)


@pytest.mark.parametrize(
    ("lora", "words"), [("missing.safetensors", "is no safetensors file"), ("style.safetensors:much", "stands a scale")]
)
def test_an_adapter_that_cannot_be_is_refused(
    checkpoints: dict[str, str], lora: str, words: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, options(checkpoints, tmp_path / "models", "--lora", lora))
    assert done.exit_code == 1
    assert words in done.output


def test_an_adapter_of_another_architecture_is_refused(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_file({"unet.other.lora.down.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    further = ("--lora", str(tmp_path / "other.safetensors"))
    done = CliRunner().invoke(app, options(checkpoints, tmp_path / "models", *further))
    assert done.exit_code == 1
    assert "is no adapter of this checkpoint's architecture" in done.output
