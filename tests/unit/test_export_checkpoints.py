"""Checkpoints that are refused, each with what to do; and a repository that appears as a whole or not at all."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import save_file

from captory_engine.errors import BadModel
from captory_export import publishing
from captory_export.checkpoints import MAX_LICENCE_BYTES, find, num_weight_bytes
from captory_export.publishing import published

UNET, TEXT = "unet/diffusion_pytorch_model", "text_encoder_3/model"
PIPELINE = {  # as hubs have them, and whether it is read
    "README.md": True,
    "model_index.json": True,
    "v1-5-pruned.safetensors": False,
    "v1-5-pruned.ckpt": False,
    "scheduler/scheduler_config.json": True,
    "tokenizer/merges.txt": True,
    "unet/config.json": True,
    f"{UNET}.safetensors": True,
    f"{UNET}.fp16.safetensors": False,
    f"{UNET}.non_ema.safetensors": False,
    f"{UNET}.bin": False,
    f"{TEXT}-00001-of-00002.safetensors": True,
    f"{TEXT}-00002-of-00002.safetensors": True,
    f"{TEXT}.fp16-00001-of-00002.safetensors": False,
    "vae/diffusion_pytorch_model.safetensors": True,
    "vae_1_0/diffusion_pytorch_model.safetensors": False,
    "safety_checker/model.safetensors": False,
    "text_encoders/clip_g.safetensors": False,
    "onnx/model.onnx_data": False,
}
MODEL = {
    "config.json": True,
    "tokenizer.json": True,
    "chat_template.jinja": True,
    "model-00001-of-00002.safetensors": True,
    "model-00002-of-00002.safetensors": True,
    "original/consolidated.00.pth": False,
    "tf_model.h5": False,
}


def write(root: Path, names: Iterable[str]) -> Path:
    """Files of those names, each of the kind that its name says."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({name: np.ones(3, np.float32)}, root / name)
        else:
            (root / name).write_text("{}" if name.endswith(".json") else "---\nlicense: apache-2.0\n---\nwords")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound pipeline."""
    names = ("README.md", "model_index.json", "unet/config.json", f"{UNET}.safetensors", "text_encoder/config.json")
    return write(tmp_path / "some-model", (*names, "text_encoder/model.safetensors"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound model that is no pipeline."""
    return write(tmp_path / "other-model", ("config.json", "model.safetensors"))


def refusal(reference: str | Path) -> BadModel:
    with pytest.raises(BadModel) as refused:
        find(str(reference))
    return refused.value


def reason(reference: str | Path) -> str:
    return refusal(reference).reason


def test_a_sound_folder(folder: Path) -> None:
    found = find(str(folder))
    assert (found.name, found.licence) == ("some-model", "apache-2.0")
    assert found.settings("unet/config.json") == {}
    (folder / "unet" / "config.json").write_text('{"sample_size": 4}')
    assert find(str(folder)).revision != found.revision


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [x]\n---\nlicense: not this", "mit"),
        ("---\nlicense: 'other'\nlicense_name: \"some-community\"\n---\n", "other: some-community"),
        ("---\nlicense_name: some community licence\n---\n", "some community licence"),
        ("---\nlicense:\n- mit\n---\n", ""),
        ("# A card\n\nlicense: mit\n", ""),
        ("---\nlicense: mit\nand no end", ""),
    ],
)
def test_a_licence_is_what_the_front_matter_calls_it(folder: Path, card: str, licence: str) -> None:
    (folder / "README.md").write_text(card)
    assert find(str(folder)).licence == licence


def test_the_texts_of_a_licence_are_read_unless_they_cannot_be_one(folder: Path) -> None:
    assert find(str(folder)).licences() == {}
    (folder / "LICENSE.md").write_text("words")
    (folder / "LICENSE-CODE").write_text("other words")
    assert find(str(folder)).licences() == {"LICENSE.md": b"words", "LICENSE-CODE": b"other words"}
    (folder / "LICENSE.md").write_bytes(b"x" * (MAX_LICENCE_BYTES + 1))
    with pytest.raises(BadModel, match=r"LICENSE\.md of some-model is larger"):
        find(str(folder)).licences()


def test_only_texts_by_the_name_of_a_licence_are_one_and_only_a_few(folder: Path) -> None:
    for name in ("LICENSE.sh", "LICENSE.exe", "LICENSE\nname", "LICENSEE " + 70 * "x"):
        (folder / name).touch()
    assert find(str(folder)).licences() == {}
    for number in range(40):
        (folder / f"LICENSE-{number:02}.txt").touch()
    assert list(find(str(folder)).licences()) == [f"LICENSE-{number:02}.txt" for number in range(16)]


def test_only_what_is_read_is_told_by_size_and_digest(folder: Path) -> None:
    before, num_bytes = find(str(folder)).revision, num_weight_bytes(folder)
    assert num_bytes == sum((folder / f"{name}.safetensors").stat().st_size for name in (UNET, "text_encoder/model"))
    write(folder, [name for name, is_read in PIPELINE.items() if not is_read and not name.startswith(TEXT)])
    assert (find(str(folder)).revision, num_weight_bytes(folder)) == (before, num_bytes)


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
    (folder / f"{UNET}.bin").write_bytes(b"pickle")
    (folder / "whole.ckpt").write_bytes(b"pickle")
    find(str(folder))
    (folder / f"{UNET}.safetensors").unlink()
    refused = refusal(folder)
    assert refused.reason == "PICKLE"
    assert "diffusion_pytorch_model.bin: pickles are not read. Save them with save_pretrained()" in refused.message


def test_weights_that_are_missing_or_a_variant_alone(folder: Path, model: Path) -> None:
    (folder / f"{UNET}.safetensors").rename(folder / f"{UNET}.fp16.safetensors")
    assert reason(folder) == "WEIGHTS_MISSING"
    (model / "model.safetensors").unlink()
    refused = refusal(model)
    assert refused.reason == "WEIGHTS_MISSING"
    assert "name another revision" in refused.message


def test_an_adapter_is_no_checkpoint(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    assert reason(model) == "ADAPTER"


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      tail"])
def test_corrupt_safetensors(folder: Path, content: bytes) -> None:
    (folder / "text_encoder" / "model.safetensors").write_bytes(content)
    assert reason(folder) == "CHECKPOINT_CORRUPT"


def test_truncated_safetensors(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused = refusal(model)
    assert refused.reason == "CHECKPOINT_CORRUPT"
    assert "no whole safetensors file; fetch it again" in refused.message


@pytest.mark.parametrize("shard", ["model-00002-of-00002.safetensors", "../model.safetensors", "/etc/passwd", 7])
def test_an_index_that_leads_elsewhere(model: Path, shard: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused = refusal(model)
    assert refused.reason == "CHECKPOINT_INCOMPLETE"
    assert f"not beside it: {shard}" in refused.message


def test_shards_beside_their_index(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    shard = model / "model-00001-of-00001.safetensors"
    assert num_weight_bytes(find(str(model)).path) == shard.stat().st_size > 0


def test_settings_that_are_no_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")
    assert reason(folder) == "CHECKPOINT_CORRUPT"


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "extra.txt").symlink_to(tmp_path)
    assert reason(folder) == "LINKS"


@pytest.mark.parametrize("files", [PIPELINE, MODEL], ids=["pipeline", "model"])
def test_from_the_hub_only_what_is_read_is_fetched(
    files: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = tmp_path / ("c" * 40)

    def download(repo: str, *, revision: str, allow_patterns: Sequence[str]) -> str:
        assert (repo, revision) == ("org/name", "refs/pr/4")
        return str(write(commit, filter_repo_objects(files, allow_patterns=list(allow_patterns))))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = find("org/name@refs/pr/4")
    fetched = {path.relative_to(commit).as_posix() for path in commit.rglob("*") if path.is_file()}
    assert fetched == {name for name, is_read in files.items() if is_read}
    assert (found.name, found.revision, found.path) == ("org/name", commit.name, commit)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (errors.HFValidationError("too long"), "REFERENCE", "no name that the hub allows: too long"),
        (errors.GatedRepoError("403"), "GATED", "accept its terms on the hub, and set HF_TOKEN"),
        (errors.RevisionNotFoundError("404"), "REVISION_MISSING", "has no revision 'v1': name one that its page has"),
        (errors.RepositoryNotFoundError("401"), "CHECKPOINT_MISSING", "check its name, and set HF_TOKEN"),
        (errors.LocalEntryNotFoundError("offline"), "CHECKPOINT_MISSING", "check the path, the connection and HF_HUB"),
        (errors.OfflineModeIsEnabled("offline mode"), "HUB_FAILED", "offline mode"),
        (errors.HfHubHTTPError("502\n\nBad Gateway"), "HUB_FAILED", "try again. The hub said: 502 Bad Gateway"),
        (errors.BadRequestError("400"), "HUB_FAILED", "400"),
        (errors.FileMetadataError("no etag"), "HUB_FAILED", "no etag"),
        (ConnectionError("proxy"), "HUB_FAILED", "proxy"),
        (RuntimeError("chunks"), "HUB_FAILED", "chunks"),
        (OSError(errno.ENOSPC, "full"), "DISK_FULL", "free some, or set HF_HOME"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_of_the_hub_says_what_to_do(
    error: Exception, expected: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    refused = refusal("org/name@v1")
    assert (refused.reason, words in refused.message) == (expected, True), refused.message
    assert "org/name" in refused.message


def test_names_that_no_hub_has() -> None:
    assert reason("org/na--me") == "REFERENCE"
    assert reason("org/name.git@main") == "REFERENCE"


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


@pytest.mark.parametrize("place", ["repository", "deep/er/repository"])
def test_an_error_leaves_nothing(place: str, tmp_path: Path) -> None:
    def publish() -> None:
        with published(tmp_path / place, 1) as staging:
            (staging / "file").write_text("x")
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        publish()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_folders_that_others_made_or_use(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    def publish() -> None:
        with published(tmp_path / "mine" / "new" / "deep" / "repository", 1):
            (tmp_path / "mine" / "new" / "theirs").write_text("x")
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        publish()
    left = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))]
    assert left == ["mine", "mine/new", "mine/new/theirs"]


def test_a_taken_place_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadModel, match="already is something"), published(tmp_path, 1):
        pass
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(publishing.shutil, "disk_usage", lambda _: usage(10))
    with pytest.raises(BadModel, match="Not enough room"), published(tmp_path / "new" / "repository", 11):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def publish() -> None:
        with published(tmp_path / "repository", 1) as staging:
            (staging / "file").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BadModel, match="There is no more room") as refused:
        publish()
    assert refused.value.reason == "DISK_FULL"
    assert list(tmp_path.iterdir()) == []
