"""`captory models` and `captory serve`, as a person types them."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import typer
from typer.testing import CliRunner

from captory_engine import repository
from captory_server.commands import models, serve

CONFIG = """
name: "tiny"
platform: "onnxruntime_onnx"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""


def captory(*words: object, app: typer.Typer = models) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "mine" / "tiny"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.onnx").write_bytes(b"weights")
    return folder


def test_a_model_is_added_listed_verified_and_removed(tiny: Path, tmp_path: Path) -> None:
    root = ("--repository", tmp_path / "models")
    code, added, _ = captory("add", tiny, *root)
    assert code == 0
    assert added.startswith("tiny  ")
    assert captory("list", *root) == (0, added, "")
    assert captory("verify", *root)[1] == f"{added.strip()}  ok\n"
    code, _, why = captory("add", tiny, *root)
    assert code == 1
    assert "tiny" in why
    assert captory("remove", "tiny", *root) == (0, "", "")
    assert captory("list", *root) == (0, "", f"captory models: {tmp_path / 'models'} has no models\n")


def test_a_model_that_was_touched_is_named_and_the_others_still_shown(tiny: Path, tmp_path: Path) -> None:
    root = ("--repository", tmp_path / "models")
    for name in ("a", "b", "c"):
        folder = tiny.with_name(name)
        copytree(tiny, folder)
        (folder / "config.pbtxt").write_text(CONFIG.replace("tiny", name))
        captory("add", folder, *root)
    (tmp_path / "models" / "a" / "1" / "model.onnx").write_bytes(b"others")
    (tmp_path / "models" / "b" / "manifest.sha256").unlink()
    for command, words in (("list", 2), ("verify", 3)):
        code, shown, why = captory(command, *root)
        assert code == 1
        bad, also_bad, sound = shown.splitlines()
        assert (bad, also_bad) == ("a  bad", "b  bad")
        assert sound.startswith("c  ")
        assert len(sound.split()) == words
        assert "changed 1/model.onnx" in why
        assert "'b' has no manifest.sha256" in why


def test_only_a_repository_of_one_s_own_is_changed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("add", tiny), ("remove", "tiny")):
        code, _, why = captory(*words)
        assert code == 2
        assert "--repository" in why
    monkeypatch.setattr(repository, "default_repository", lambda: tiny.parent)
    for words in (("add", tiny), ("remove", "tiny")):
        code, _, why = captory(*words, "--repository", tiny.parent / ".." / tiny.parent.name)
        assert code == 2
        assert "is the embedded repository" in why
    assert tiny.is_dir()


@pytest.mark.parametrize("words", [("verify", "none"), ("remove", "none"), ("remove", "../x"), ("add", "/none")])
def test_what_is_not_there_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "models").mkdir()
    code, _, why = captory(*words, "--repository", tmp_path / "models")
    assert code == 1
    assert why.startswith("captory models: ")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--address", "0.0.0.0:50061"), "no TLS and no authentication"),
        (("--threads", "-1"), "threads: "),
        (("--log-level", "loud"), "log_level: "),
        (("--config", "/none.yaml"), "/none.yaml: No such file"),
        (("--max-items", "0"), "max_items must be above 0"),
        (("--torch-dtype", "int4"), "dtype is 'int4'; it must be one of fp32, fp16, bf16"),
        (("--torch-compile", "fast"), "compile_mode is 'fast'"),
        (("--triton", "http://127.0.0.1:8001"), "is not HOST:PORT"),
        (("--triton", "127.0.0.1:99999"), "is not HOST:PORT"),
    ],
)
def test_settings_that_cannot_be_are_refused(words: tuple[str, ...], why: str) -> None:
    app = typer.Typer()
    app.command()(serve)
    code, _, said = captory(*words, app=app)
    assert code == 2
    assert why in said
