"""Checkpoints that are refused, each with what to do; and a repository that appears as a whole or not at all."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from captory_engine.errors import BadModel
from captory_export import publishing
from captory_export.checkpoints import find, num_weight_bytes
from captory_export.publishing import published


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint with a part in a folder of its own."""
    root = tmp_path / "some-model"
    (root / "unet").mkdir(parents=True)
    (root / "config.json").write_text('{"model_type": "qwen2"}')
    (root / "README.md").write_text("---\nlicense: apache-2.0\n---\nwords")
    save_file({"a": np.ones(3, np.float32)}, root / "model.safetensors")
    save_file({"b": np.ones(5, np.float32)}, root / "unet" / "diffusion_pytorch_model.safetensors")
    return root


def reason(reference: str | Path) -> str:
    with pytest.raises(BadModel) as refused:
        find(str(reference))
    return refused.value.reason


def test_a_sound_folder(folder: Path) -> None:
    found = find(str(folder))
    assert (found.name, found.licence) == ("some-model", "apache-2.0")
    assert found.settings("config.json") == {"model_type": "qwen2"}
    assert num_weight_bytes(folder) > 32
    before = found.revision
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert find(str(folder)).revision != before


@pytest.mark.parametrize("reference", ["nothing", "../a/b", "/not/there", "~/x", "org/na me", "org/name@", "a/b/c"])
def test_what_is_no_reference(reference: str) -> None:
    assert reason(reference) == "REFERENCE"


def test_code_is_refused_in_files_and_by_auto_map(folder: Path) -> None:
    code = folder / "modeling_own.py"
    code.write_text("import os")
    assert reason(folder) == "REMOTE_CODE"
    code.unlink()
    (folder / "unet" / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    assert reason(folder) == "REMOTE_CODE"


def test_pickles_alone_are_refused_and_beside_safetensors_not_read(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    find(str(folder))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert reason(folder) == "PICKLE"


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      tail"])
def test_corrupt_safetensors(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert reason(folder) == "CHECKPOINT_CORRUPT"


def test_truncated_safetensors(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert reason(folder) == "CHECKPOINT_CORRUPT"


@pytest.mark.parametrize("shard", ["gone.safetensors", "../outside.safetensors", "/etc/passwd", 7])
def test_an_index_that_leads_elsewhere(folder: Path, shard: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert reason(folder) == "CHECKPOINT_INCOMPLETE"


def test_settings_that_are_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert reason(folder) == "CHECKPOINT_CORRUPT"


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "extra.txt").symlink_to(tmp_path)
    assert reason(folder) == "LINKS"


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert reason("org/name@main") == "CHECKPOINT_MISSING"


def test_a_repository_appears_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "repository"
    with published(out, 1) as staging:
        (staging / "model").mkdir()
        (staging / "model" / "file").write_text("x")
        assert not out.exists()
    assert (out / "model" / "file").read_text() == "x"
    assert list(out.parent.iterdir()) == [out]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "repository"

    def publish() -> None:
        with published(out, 1) as staging:
            (staging / "file").write_text("x")
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        publish()
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadModel, match="already is something"), published(tmp_path, 1):
        pass
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(publishing.shutil, "disk_usage", lambda _: usage(10))
    with pytest.raises(BadModel, match="Not enough room"), published(tmp_path / "new", 11):
        pass
