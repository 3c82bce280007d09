"""`captory models` and `captory serve`, as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

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
    assert captory("list", *root) == (0, "", "")


def test_a_model_that_was_touched_is_named(tiny: Path, tmp_path: Path) -> None:
    root = ("--repository", tmp_path / "models")
    captory("add", tiny, *root)
    (tmp_path / "models" / "tiny" / "1" / "model.onnx").write_bytes(b"others")
    for command in ("list", "verify"):
        code, _, why = captory(command, *root)
        assert code == 1
        assert "changed 1/model.onnx" in why


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
    ],
)
def test_settings_that_cannot_be_are_refused(words: tuple[str, ...], why: str) -> None:
    app = typer.Typer()
    app.command()(serve)
    code, _, said = captory(*words, app=app)
    assert code == 2
    assert why in said
