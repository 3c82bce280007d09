"""The model repository: what is opened, what is refused, and that each refusal names what is wrong."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SCALER_CONFIG, scaler_graph, write_model, write_scaler

from captory_engine import manifest, repository
from captory_engine.errors import BadModel
from captory_engine.family import find_family
from captory_engine.tokenizer import Tokenizer


def test_reads_specs_with_reshape_applied(tmp_path: Path) -> None:
    folder = write_scaler(tmp_path)
    model = repository.open_model(tmp_path, "scaler")
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [
        ("x", np.dtype(np.float32), (-1, 3)),
        ("scale", np.dtype(np.float32), ()),
    ]
    assert (model.max_batch, model.version, model.model_path) == (4, 1, folder / "1" / "model.onnx")
    assert model.digest == repository.verify_model(folder)


def test_takes_the_highest_version_that_the_policy_allows(tmp_path: Path) -> None:
    graph = scaler_graph().SerializeToString()
    more = {"2/model.onnx": graph, "10/model.onnx": graph}
    write_model(tmp_path, "scaler", SCALER_CONFIG, graph, more)
    assert repository.open_model(tmp_path, "scaler").version == 10
    root = tmp_path / "other"
    write_model(root, "scaler", SCALER_CONFIG + "version_policy: { specific: { versions: [1, 2] } }", graph, more)
    assert repository.open_model(root, "scaler").version == 2


def test_manifest_is_what_sha256sum_checks(tmp_path: Path) -> None:
    folder = write_scaler(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", manifest.MANIFEST], cwd=folder, check=True)


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first, second = write_scaler(tmp_path / "a"), write_scaler(tmp_path / "b")
    assert repository.verify_model(first) == repository.verify_model(second)
    (second / "notes.txt").write_text("more")
    assert manifest.write_manifest(second) != repository.verify_model(first)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "1" / "model.onnx").write_bytes(b"other"), "changed 1/model.onnx"),
        (lambda folder: (folder / "1" / "model.onnx").unlink(), "missing 1/model.onnx"),
        (lambda folder: (folder / "1" / "more.txt").write_text(""), "extra 1/more.txt"),
        (lambda folder: (folder / "1" / "model.py").write_text(""), "can carry code"),
        (lambda folder: (folder / "weights.PKL").write_text(""), "can carry code"),
        (lambda folder: (folder / "link").symlink_to("/etc/hostname"), "is a link"),
        (lambda folder: (folder / "2").symlink_to(folder / "1"), "is a link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "not a regular file"),
        (lambda folder: (folder / manifest.MANIFEST).unlink(), "has no manifest.sha256"),
        (lambda folder: (folder / manifest.MANIFEST).write_text("abc  x\n"), "Line 1"),
        (lambda folder: (folder / manifest.MANIFEST).write_bytes(b"\xff\xfe"), "not text"),
        (lambda folder: (folder / manifest.MANIFEST).write_text("a" * (2 << 20)), "too large"),
        (lambda folder: (folder / manifest.MANIFEST).write_text(f"{'0' * 64}  ../../etc/hostname\n"), "missing ../.."),
    ],
)
def test_folder_that_differs_from_its_manifest_is_refused(tmp_path: Path, change: object, words: str) -> None:
    folder = write_scaler(tmp_path)
    change(folder)  # type: ignore[operator]
    with pytest.raises(BadModel, match=words):
        repository.open_model(tmp_path, "scaler")


def test_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "scaler").symlink_to(write_scaler(tmp_path / "elsewhere"))
    with pytest.raises(BadModel, match="no model folder"):
        repository.open_model(tmp_path / "root", "scaler")
    with pytest.raises(BadModel, match="no model"):
        repository.remove_model(tmp_path / "root", "scaler")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"scaler"', '"other"', "calls itself 'other'"),
        ("max_batch_size: 4", "max_batch_size: 0", "max_batch_size"),
        ("max_batch_size: 4", "max_batch_size: four", "cannot be read"),
        ("max_batch_size: 4", 'max_batch_size: 4 default_model_filename: "../../x"', "plain file name"),
        ("max_batch_size: 4", 'max_batch_size: 4 default_model_filename: "y.onnx"', "has no y.onnx"),
        ("max_batch_size: 4", "max_batch_size: 4 version_policy { specific { versions: [7] } }", "version folder"),
        ("TYPE_FP32", "TYPE_BF16", "of type TYPE_BF16"),
        ("dims: [ -1, 3 ]", "dims: [ -2, 3 ]", "has the shape"),
        ("output [", "batch_output [", "cannot be read"),
    ],
)
def test_configuration_that_does_not_hold_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    write_model(tmp_path, "scaler", SCALER_CONFIG.replace(old, new), scaler_graph())
    with pytest.raises(BadModel, match=words):
        repository.open_model(tmp_path, "scaler")


def test_lists_model_folders_only(tmp_path: Path) -> None:
    write_scaler(tmp_path)
    write_scaler(tmp_path, "another")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert repository.list_models(tmp_path) == ["another", "scaler"]
    with pytest.raises(BadModel, match="no model repository"):
        repository.list_models(tmp_path / "absent")


def test_add_copies_with_a_manifest_and_remove_takes_away(tmp_path: Path) -> None:
    source, root = write_scaler(tmp_path / "source"), tmp_path / "root"
    (source / manifest.MANIFEST).unlink()
    model = repository.add_model(root, source)
    assert model == repository.open_model(root, "scaler")
    assert [path.name for path in root.iterdir()] == ["scaler"]
    with pytest.raises(BadModel, match="already is"):
        repository.add_model(root, source)
    repository.remove_model(root, "scaler")
    assert list(root.iterdir()) == []
    assert source.is_dir()
    with pytest.raises(BadModel, match="no model"):
        repository.remove_model(root, "scaler")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.pbtxt").write_text("nothing"),
        lambda folder: (folder / "model.py").write_text(""),
        lambda folder: (folder / "link").symlink_to("/etc/hostname"),
        lambda folder: (folder / "1" / "model.onnx").write_bytes(b"changed"),
        lambda folder: os.link(folder / "1" / "model.onnx", folder.parent / "second-name"),
    ],
)
def test_add_refuses_and_leaves_nothing_behind(tmp_path: Path, spoil: object) -> None:
    source, root = write_scaler(tmp_path / "source"), tmp_path / "root"
    spoil(source)  # type: ignore[operator]
    with pytest.raises(BadModel):
        repository.add_model(root, source)
    assert not root.exists() or list(root.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../scaler", "a/b", "/etc", "a\x00b", "x" * 65, "ü", "a b", "scaler\n"]
)
def test_names_are_never_paths(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    write_scaler(root)
    write_scaler(tmp_path)
    for act in (repository.open_model, repository.remove_model):
        with pytest.raises(BadModel, match="no model name"):
            act(root, name)
    assert repository.list_models(tmp_path) == ["scaler"]


def test_default_repository_is_the_packaged_one_or_the_checkouts() -> None:
    path = repository.default_repository()
    assert path.name == "model_repository"
    assert path.parent.name in ("captory_engine", Path(__file__).parents[2].name)


def test_the_models_that_ship_are_sound() -> None:
    root = repository.default_repository()
    if not root.is_dir():
        pytest.skip("the checkout has no model_repository")
    family = find_family(root).family
    models = {name: repository.open_model(root, name) for name in repository.list_models(root)}
    assert set(family.models) <= set(models)
    for section in (family.captioner, family.painter, family.writer):
        assert section is None or Tokenizer(root / section.tokenizer).vocab_size > 0
