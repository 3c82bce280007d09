"""A family is looked through before anything is computed, and published as one, with its licences."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch")
for module in ("onnxscript", "diffusers", "transformers"):
    pytest.importorskip(module)

import painter_twins  # noqa: E402
import word_twins  # noqa: E402

from captory_engine.errors import BadModel  # noqa: E402
from captory_engine.family import find_family  # noqa: E402
from captory_engine.manifest import read_manifest, verify_manifest  # noqa: E402
from captory_export import families, picto  # noqa: E402
from captory_export.commands import export  # noqa: E402
from captory_export.families import Wanted, prepare, write_models  # noqa: E402


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    """Small checkpoints of two roles."""
    captioner, painter = tmp_path / "captioner", tmp_path / "painter"
    word_twins.save("blip", captioner)
    painter_twins.stable_diffusion(painter)
    return Wanted(str(captioner), "", str(painter), name="twin")


def silent(words: str) -> None:
    """Say nothing."""


def test_the_last_role_is_refused_before_the_first_is_computed(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "export_part", lambda *_, **__: pytest.fail("something was computed"))
    (Path(wanted.captioner) / "captory.json").write_text(json.dumps({"max_new_tokens": 0}))
    with pytest.raises(BadModel, match="captioner is nothing that the engine can serve: max_new_tokens: "):
        families.export_family(wanted, tmp_path / "deep" / "models", silent)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("captioner/captory.json", {"prefixes": ["not by length"]}),
        ("captioner/captory.json", {"max_new_tokens": "many"}),
        ("captioner/preprocessor_config.json", {"size": {"height": 16, "width": 16}, "rescale_factor": 0}),
        ("painter/vae/config.json", {"block_out_channels": None}),
    ],
)
def test_settings_of_other_types_are_refused(
    wanted: Wanted, tmp_path: Path, file: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | settings))
    with pytest.raises(BadModel):
        prepare(wanted)


def test_who_is_told_to_end_leaves_nothing(wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "export_part", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    app, before = typer.Typer(), signal.getsignal(signal.SIGTERM)
    app.command()(export)
    words = ["--captioner", wanted.captioner, "--painter", wanted.painter, "--out", str(tmp_path / "models")]
    assert CliRunner().invoke(app, words).exit_code == 128 + signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} == {"captioner", "painter"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_licences_are_kept_beside_the_family_file(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_role(exportable: Any, root: Path, name: str, *_: Any, **__: Any) -> dict[str, Any]:
        (root / f"{name}_unet").mkdir(parents=True)
        return {"end_to_end": {}}

    monkeypatch.setattr(families, "export_role", export_role)
    (Path(wanted.painter) / "LICENSE.md").write_text("of the painter")
    (Path(wanted.captioner) / "LICENSE.md").write_text("of the captioner")
    (Path(wanted.painter) / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n")
    root = tmp_path / "models"
    write_models(prepare(wanted), root, silent)
    folder = root / "twin_painter_unet"
    assert (folder / "painter-LICENSE.md").read_text() == "of the painter"
    assert (folder / "captioner-LICENSE.md").read_text() == "of the captioner"
    assert {"painter-LICENSE.md", "captioner-LICENSE.md", "family.yaml", "report.json"} == {*read_manifest(folder)}
    assert verify_manifest(folder)
    family = find_family(root).family
    assert family.sources["painter"].licence == "other: own"
    assert (family.captioner, family.painter) == tuple(
        prepare(wanted).sections[role] for role in ("captioner", "painter")
    )


def test_picto_is_published_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(prepared: families.Prepared, root: Path, say: Any) -> dict[str, Any]:
        (root / "picto_painter").mkdir()
        return {}

    def read(source: Path, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        return {}

    def fail(source: Path, folder: Path) -> dict[str, Any]:
        raise BadModel("PARITY", f"not the reader that it was: {read(source, folder)}")

    out = tmp_path / "new" / "models"
    monkeypatch.setattr(picto, "prepare", lambda _: families.Prepared(Wanted("", "", ""), "picto", {}, {}, {}, 1))
    monkeypatch.setattr(picto, "write_models", write)
    monkeypatch.setattr(picto, "export_reader", fail)
    with pytest.raises(BadModel, match="not the reader"):
        picto.main(tmp_path / "checkpoints", out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(picto, "export_reader", read)
    picto.main(tmp_path / "checkpoints", out)
    assert sorted(path.name for path in out.iterdir()) == ["picto_painter", "picto_reader"]
