"""`captory export`: checkpoints in, a repository out that the engine serves; or nothing at all."""

from __future__ import annotations

import io
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import errors
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import painter_twins  # noqa: E402
import word_twins  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from captory_client.cli import app  # noqa: E402
from captory_engine.assembly import EngineConfig, open_pipeline  # noqa: E402
from captory_engine.family import find_family  # noqa: E402
from captory_engine.items import Item, Mode, Painted, Sample  # noqa: E402
from captory_engine.repository import list_models  # noqa: E402
from captory_export import publishing  # noqa: E402
from captory_export.checkpoints import find  # noqa: E402
from captory_export.exportable import Graph, Part  # noqa: E402
from captory_export.painters import full_image  # noqa: E402
from captory_export.painters.stable_diffusion import open_stable_diffusion  # noqa: E402
from captory_export.precision import BOUNDS, Precision  # noqa: E402

pytestmark = pytest.mark.export

MODELS = ["captioner_decoder", "captioner_vision", "painter_text_encoder", "painter_unet", "painter_vae_decoder"]
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"
TENSORS = "unet/diffusion_pytorch_model.safetensors"
PHOTO = io.BytesIO()
Image.fromarray(np.full((40, 30, 3), 99, np.uint8)).save(PHOTO, "PNG")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of one small checkpoint a role, to be copied before they are changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {"captioner": root / "blip", "writer": root / "llama", "painter": root / "sd"}
    word_twins.save("blip", folders["captioner"])
    word_twins.save("llama", folders["writer"])
    painter_twins.stable_diffusion(folders["painter"])
    return {role: str(folder) for role, folder in folders.items()}


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them exported by the command, with an adapter."""
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    adapter = {f"{LAYER}.lora.down.weight": torch.randn(2, 16), f"{LAYER}.lora.up.weight": torch.randn(16, 2)}
    save_file(adapter, root / "style.safetensors")
    further = ("--name", "twin", "--json", "--lora", f"{root / 'style.safetensors'}:0.5")
    done = export(checkpoints, root / "models", *further)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in root.iterdir()) == ["models", "style.safetensors"]
    return root / "models"


def export(checkpoints: dict[str, str], out: Path, *further: str) -> Any:
    """The command, called as a person calls it."""
    roles = [text for role, folder in checkpoints.items() for text in (f"--{role}", folder)]
    return CliRunner().invoke(app, ["export", *roles, "--out", str(out), *further])


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


async def test_checkpoints_become_a_family_that_is_served(models: Path) -> None:
    assert list_models(models) == sorted(f"twin_{model}" for model in [*MODELS, "writer_decoder"])
    family = find_family(models).family
    assert (family.name, family.in_world_only) == ("twin", False)
    assert set(family.sources) == {"captioner", "writer", "painter"}
    assert len(family.sources["painter"].revision) == 64
    report = json.loads((models / "twin_painter_unet" / "report.json").read_text())
    assert report["captioner"]["end_to_end"]["same_texts"] == 1.0
    assert report["painter"]["end_to_end"]["psnr_db"] >= BOUNDS[Precision.FP32].psnr_db
    for model in list_models(models):
        assert json.loads((models / model / "parity.json").read_text())["cosine"] > 0.99999
    assert (await painted(models, Mode.CIP)).data
    assert (await painted(models, Mode.REWRITE)).data


def test_an_adapter_is_merged_and_recorded(checkpoints: dict[str, str], models: Path) -> None:
    [record] = find_family(models).family.sources["painter"].loras
    assert (record.file, record.scale, len(record.sha256)) == ("style.safetensors", 0.5, 64)
    plain = open_stable_diffusion(find(checkpoints["painter"])).graph("unet")
    inputs = {name: value.numpy() for name, value in plain.inputs.items()}
    (before,), (after,) = (
        run(inputs).values()
        for run in (full_image.run_module(plain), full_image.run_model(models / "twin_painter_unet"))
    )
    assert np.abs(before - after).max() > 1e-3


def test_a_folder_that_is_there_is_left_alone(checkpoints: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    done = export(checkpoints, tmp_path)
    assert done.exit_code == 1
    assert "There already is something" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("difference", "psnr_db", "words"),
    [
        (-1.0, 99.0, "_painter_linear is not what the checkpoint is: difference"),
        (1e-3, 30.0, "_painter is not what the checkpoint is: psnr_db is 30, not 60"),
    ],
    ids=["graph", "end-to-end"],
)
def test_what_fails_parity_leaves_nothing(
    checkpoints: dict[str, str],
    difference: float,
    psnr_db: float,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BOUNDS, Precision.FP32, BOUNDS[Precision.FP32]._replace(difference=difference))
    monkeypatch.setattr("captory_export.families._open", lambda *_: Linear(psnr_db))
    done = export(checkpoints, tmp_path / "models")
    assert done.exit_code == 1
    assert words in done.output
    assert list(tmp_path.iterdir()) == []


class Linear:
    """A checkpoint of one layer, whose whole differs by so much."""

    def __init__(self, psnr_db: float) -> None:
        self.psnr_db = psnr_db

    def parts(self) -> Iterator[Part]:
        yield Part("linear", Graph(nn.Linear(4, 3), {"input": torch.randn(2, 4)}, ["output"]))

    def section(self, name: str) -> None:
        """Of no use: nothing of it comes as far as a family file."""

    def check(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        assert [path.name for path in folders.values()] == ["sd_painter_linear"]
        return {"psnr_db": self.psnr_db}


def rewrite(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


@pytest.mark.parametrize(
    ("role", "harm", "words"),
    [
        ("painter", rewrite("model_index.json", '{"_class_name": "FluxPipeline"}'), "architecture 'FluxPipeline'"),
        ("painter", rewrite("model_index.json", "{"), "is not valid JSON"),
        ("painter", rewrite("unet/code.py", "print()"), "would run code"),
        ("painter", rewrite(TENSORS, "not tensors"), "no whole safetensors file; fetch it again"),
        ("painter", lambda folder: (folder / TENSORS).rename(folder / "unet" / "model.bin"), "pickles are not read"),
        ("painter", lambda folder: (folder / "more.txt").symlink_to("/etc/hostname"), "links are not followed"),
        ("captioner", rewrite("config.json", '{"model_type": "git"}'), "architecture 'git'; as captioner: blip"),
        ("captioner", rewrite("config.json", '{"auto_map": {}}'), "would run code"),
        ("captioner", lambda folder: (folder / "model.safetensors").unlink(), "Save them with save_pretrained()"),
        (
            "writer",
            rewrite("model.safetensors.index.json", '{"weight_map": {"a": "../other/model.safetensors"}}'),
            "not beside it: ../other/model.safetensors",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    checkpoints: dict[str, str], role: str, harm: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints[role], tmp_path / "checkpoint"))
    harm(folder)
    done = export({**checkpoints, role: str(folder)}, tmp_path / "models")
    assert done.exit_code == 1
    assert words in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_revision_that_is_not_there_is_told(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise errors.RevisionNotFoundError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    done = export({**checkpoints, "writer": "org/name@v9"}, tmp_path / "models")
    assert done.exit_code == 1
    assert "org/name has no revision 'v9'" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(publishing.shutil, "disk_usage", lambda _: usage(1000))
    done = export(checkpoints, tmp_path / "models")
    assert done.exit_code == 1
    assert "Not enough room" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ("missing.safetensors", "no safetensors file at"),
        ("style.safetensors:much", "stands a scale"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(
    checkpoints: dict[str, str], lora: str, words: str, tmp_path: Path
) -> None:
    done = export(checkpoints, tmp_path / "models", "--lora", lora)
    assert done.exit_code == 1
    assert words in done.output
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_architecture_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    save_file({"unet.other.lora.down.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    done = export(checkpoints, tmp_path / "models", "--lora", str(tmp_path / "other.safetensors"))
    assert done.exit_code == 1
    assert "is no adapter of this checkpoint's architecture" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]
