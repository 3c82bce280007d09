"""The three formats, read by the libraries that people use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_fakes import Maker, finished, job_spec, photo_folder, picture, requested, run
from oracle import judge

from captory_data.formats.imagefolder import folder_name
from captory_data.formats.table import RECORD_COLUMNS
from captory_data.identity import wanted_images
from captory_data.outcomes import ItemDone, Outcome, WorkItem
from captory_data.provenance import make_record
from captory_data.records import Record
from captory_data.source import SourceItem
from captory_data.sources.entry import Entry

FORMATS = ("webdataset", "imagefolder", "parquet")
FIELDS = {
    *("id", "source", "class_id", "class_name", "caption", "prompt", "mode", "seed", "steps", "guidance_scale"),
    *("sampler", "width", "height", "models", "determinism"),
}


def made(tmp_path: Path, output_format: str, **changes: Any) -> Path:
    root = photo_folder(tmp_path / "in")
    spec = job_spec(output_format=output_format, **changes)
    kind = spec.image_format.upper()
    assert run(root, tmp_path / "out", Maker(image_kind=kind), spec).exit_code == 0
    assert judge(tmp_path / "out", requested(root, spec)).clean
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def _hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(tmp_path: Path, *arguments: Any, **options: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset(*arguments, split="train", cache_dir=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_webdataset(tmp_path: Path, kind: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = made(tmp_path, "webdataset", image_format=kind, per_image=2)
    shards = sorted(map(str, (out / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert len(samples) == 12
    for sample in samples:
        record = json.loads(sample["json"])
        assert record.keys() >= FIELDS
        assert sample["__key__"] == record["id"]
        assert sample["txt"].decode() == record["prompt"]
        assert int(sample["cls"]) == {"bird": 0, "cat": 1}[record["class_id"]]
        assert record["digital_source_type"] == "trainedAlgorithmicMedia"
        assert kind in sample


def test_webdataset_in_datasets(tmp_path: Path) -> None:
    out = made(tmp_path, "webdataset")
    rows = load(tmp_path, "webdataset", data_files=sorted(map(str, (out / "shards").glob("*.tar"))))
    assert len(rows) == 6
    assert rows[0]["png"].size == (8, 8)
    assert {row["cls"] for row in rows} == {0, 1}


def test_imagefolder(tmp_path: Path) -> None:
    out = made(tmp_path, "imagefolder")
    rows = load(tmp_path, "imagefolder", data_dir=str(out / "data"))
    assert len(rows) == 6
    assert rows.features["label"].names == ["bird", "cat"]
    assert [row["class_id"] for row in rows] == [rows.features["label"].names[row["label"]] for row in rows]
    assert all(row["text"] == row["prompt"] and row["image"].size == (8, 8) for row in rows)
    assert sorted(path.name for path in (out / "data").iterdir()) == ["bird", "cat", "metadata.parquet"]


def test_parquet(tmp_path: Path) -> None:
    out = made(tmp_path, "parquet")
    rows = load(tmp_path, "parquet", data_files=sorted(map(str, (out / "data").glob("*.parquet"))))
    assert len(rows) == 6
    assert rows.features["label"].names == ["bird", "cat"]
    assert rows[0]["image"].size == (8, 8)
    assert json.loads(rows[0]["record"])["id"] == rows[0]["id"]


@pytest.mark.parametrize("output_format", ["imagefolder", "parquet"])
def test_columns_say_what_the_prompt_was_made_of(tmp_path: Path, output_format: str) -> None:
    def told(item: WorkItem) -> list[Outcome]:
        said = {"attributes": ("young", "a hat"), "synthetic_captions": ("a kite",), "mode_sha256": "ab" * 32}
        return [*(replace(finished(item, one.id), **said) for one in item.wanted), ItemDone(item.key)]

    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    assert run(root, out, Maker(told), job_spec(output_format=output_format, mode="shuffled")).images == 6
    rows = load(tmp_path, output_format, data_dir=str(out / "data"))
    assert sorted(rows["caption_source"]) == sorted(rows["source"])
    for row in rows:
        assert row["caption_source"] != row["source"]
        assert (row["mode"], row["mode_sha256"], row["writer"]) == ("shuffled", "ab" * 32, "template")
        assert (row["attributes"], row["synthetic_captions"]) == (["young", "a hat"], ["a kite"])
        assert {name: json.loads(row["record"])[name] for name in RECORD_COLUMNS} == {
            name: row[name] for name in RECORD_COLUMNS
        }


@pytest.mark.parametrize("output_format", FORMATS)
def test_without_any_class(tmp_path: Path, output_format: str) -> None:
    (tmp_path / "in").mkdir()
    for k in range(2):
        (tmp_path / "in" / f"{k}.png").write_bytes(picture(k))
    out, spec = tmp_path / "out", job_spec(output_format=output_format)
    assert run(tmp_path / "in", out, spec=spec).images == 2
    assert judge(out, requested(tmp_path / "in", spec)).clean
    if output_format == "webdataset":
        rows = load(tmp_path, "webdataset", data_files=str(out / "shards" / "*.tar"))
        assert "cls" not in rows.features
    else:
        rows = load(tmp_path, output_format, data_dir=str(out / "data"))
        assert "label" not in rows.features
    assert len(rows) == 2


@pytest.mark.parametrize("output_format", FORMATS)
def test_some_without_a_class(tmp_path: Path, output_format: str) -> None:
    root = photo_folder(tmp_path / "in", classes=("a",))
    (root / "loose.png").write_bytes(picture())
    out, spec = tmp_path / "out", job_spec(output_format=output_format)
    assert run(root, out, spec=spec).images == 4
    folder = out / ("shards" if output_format == "webdataset" else "data")
    rows = load(tmp_path, output_format, data_dir=str(folder))
    label = "cls" if output_format == "webdataset" else "label"
    absent = -1 if output_format == "webdataset" else None
    assert sorted(map(str, rows[label])) == sorted(map(str, [0, 0, 0, absent]))


def test_shards_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = made(tmp_path / "1", "webdataset")
    second = made(tmp_path / "2", "webdataset")
    shards = [[path.read_bytes() for path in sorted((out / "shards").iterdir())] for out in (first, second)]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("class_id", ["..", ".", "a/b", "", "ä b", "%2E", "x" * 500, ".hidden", "a\\b", "con\tcat"])
def test_class_folders_are_safe(class_id: str) -> None:
    name = folder_name(class_id)
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name.encode()) < 200
    assert name.isprintable()


def test_class_folders_stay_apart() -> None:
    ids = ["a/b", "a%2Fb", "a b", "a_b", "A", "a", ".a", "%2Ea"]
    assert len({folder_name(class_id) for class_id in ids}) == len(ids)


def test_records_without_a_writer_are_still_read() -> None:
    item = WorkItem("a.png", None, "", wanted_images(job_spec(), "a.png"))
    source = SourceItem("a.png", None, "", Path(), Entry())
    record = make_record(job_spec(), source, item.wanted[0], finished(item, item.wanted[0].id))
    assert Record.loads(record.dumps()) == record
    values = json.loads(record.dumps())
    assert values.pop("writer") == "template"
    assert Record.loads(json.dumps(values)) == replace(record, writer="")
    for changed in ({**values, "more": 1}, {name: values[name] for name in values if name != "seed"}):
        with pytest.raises(ValueError, match="fields"):
            Record.loads(json.dumps(changed))
