"""Weights for the torch backend are opened by their digests only, and training seals what it writes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from captory_engine.errors import BadModel
from captory_engine.manifest import MANIFEST, verify_manifest
from captory_training.checkpoint import seal

pytest.importorskip("torch", reason="the torch backend needs torch and diffusers (make test installs them)")
pytest.importorskip("diffusers")

from torch import nn

from captory_engine.sessions import torch_checkpoints
from captory_engine.sessions.torch_checkpoints import ROLES, Role, default_checkpoints, open_checkpoint

UNET, WEIGHTS = "picto_painter_unet", "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    """The shipped UNet's folder, below `tmp_path` as the root of checkpoints."""
    folder = tmp_path / "picto" / "painter" / "unet"
    copytree(default_checkpoints() / "picto" / "painter" / "unet", folder)
    return folder


def flip(path: Path) -> None:
    """Change the lowest bit of the last byte: the file still loads."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("role", ROLES)
def test_the_shipped_checkpoints_are_what_their_manifests_say(role: str) -> None:
    folder = default_checkpoints() / "picto" / ROLES[role].folder
    assert open_checkpoint(default_checkpoints(), f"picto{role}")[1] == verify_manifest(folder)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: flip(folder / WEIGHTS), f"changed {WEIGHTS}"),
        (lambda folder: (folder / "config.json").write_text("{}"), "changed config.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"missing {WEIGHTS}"),
        (lambda folder: (folder / "model.safetensors").touch(), "extra model.safetensors"),
        (lambda folder: (folder / MANIFEST).unlink(), f"has no {MANIFEST}"),
        (lambda folder: (folder / MANIFEST).write_text("of another kind\n"), "is malformed"),
        (lambda folder: (folder / "model.py").touch(), "can carry code"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_manifest_says_is_not_loaded(
    unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], object], words: str
) -> None:
    loaded: list[Path] = []

    def load(folder: Path) -> nn.Module:
        loaded.append(folder)
        return nn.Identity()

    monkeypatch.setitem(torch_checkpoints.ROLES, "_painter_unet", Role("painter/unet", load))
    open_checkpoint(tmp_path, UNET)
    assert loaded == [unet]
    harm(unet)
    with pytest.raises(BadModel, match=words) as caught:
        open_checkpoint(tmp_path, UNET)
    assert f"checkpoint of model {UNET!r}" in str(caught.value)
    assert loaded == [unet]


def test_the_command_that_the_refusal_names_writes_a_manifest(unet: Path, tmp_path: Path) -> None:
    digest = verify_manifest(unet)
    (unet / MANIFEST).unlink()
    with pytest.raises(BadModel) as caught:
        open_checkpoint(tmp_path, UNET)
    command = str(caught.value).split("`")[1]
    subprocess.run(["/bin/sh", "-c", command], cwd=unet, check=True)
    assert verify_manifest(unet) == digest


def test_what_training_seals_verifies(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("model.safetensors", "config.json", "parts/more.json"):
        (tmp_path / name).write_text(name)
    seal(tmp_path)
    digest = verify_manifest(tmp_path)
    seal(tmp_path)
    assert verify_manifest(tmp_path) == digest
    flip(tmp_path / "parts" / "more.json")
    with pytest.raises(BadModel, match=r"changed parts/more\.json"):
        verify_manifest(tmp_path)


def test_what_training_writes_the_backend_opens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    from captory_training import captioner, painter, writer

    shipped, tokenizer = default_checkpoints() / "picto", tmp_path / "tokenizer"
    copytree(shipped / "painter" / "tokenizer", tokenizer)
    unet = diffusers.UNet2DConditionModel.from_pretrained(shipped / "painter" / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(shipped / "painter" / "vae")
    text_encoder = transformers.CLIPTextModel.from_pretrained(shipped / "painter" / "text_encoder")
    painter.save_pipeline(tmp_path / "mine" / "painter", unet, text_encoder, vae, tokenizer)
    blip = transformers.BlipForConditionalGeneration.from_pretrained(shipped / "captioner")
    captioner.save(blip, tokenizer, tmp_path / "mine" / "captioner")
    qwen = transformers.Qwen2ForCausalLM.from_pretrained(shipped / "writer")
    writer.save(qwen, tokenizer, tmp_path / "mine" / "writer")
    for role in ROLES:
        assert len(open_checkpoint(tmp_path, f"mine{role}")[1]) == 64
