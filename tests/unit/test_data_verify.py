"""`verify` finds what is wrong, and names the file."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from data_fakes import job_spec, photo_folder, run

from captory_data.dataset import find_image
from captory_data.errors import DataError, LedgerError, LockedError
from captory_data.lock import locked
from captory_data.verify import verify

FORMATS = ("webdataset", "imagefolder", "parquet")


def made(tmp_path: Path, output_format: str = "webdataset") -> Path:
    run(photo_folder(tmp_path / "in"), tmp_path / "out", spec=job_spec(output_format=output_format))
    return tmp_path / "out"


def first_file(out: Path) -> Path:
    return min(path for folder in ("shards", "data") for path in (out / folder).rglob("*") if path.is_file())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("output_format", FORMATS)
def test_nothing_is_wrong(tmp_path: Path, output_format: str) -> None:
    report = verify(made(tmp_path, output_format))
    assert report.ok, report.problems
    assert report.images == 6


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-700])])
def test_a_damaged_file_is_named(tmp_path: Path, output_format: str, harm: Callable[[Path], object]) -> None:
    out = made(tmp_path, output_format)
    path = first_file(out)
    harm(path)
    report = verify(out)
    assert not report.ok
    assert any(
        path.name in f"{problem.path} {problem.message}" or path.stem in problem.message for problem in report.problems
    )
    assert len(report.problems) == len(set(report.problems))


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"\xff" * 700)])
def test_an_image_in_a_damaged_file_cannot_be_had(
    tmp_path: Path, output_format: str, harm: Callable[[Path], object]
) -> None:
    out = made(tmp_path, output_format)
    connection = sqlite3.connect(out / "ledger.sqlite")
    ((image_id,),) = connection.execute("SELECT id FROM images ORDER BY rowid LIMIT 1").fetchall()
    connection.close()
    find_image(out, image_id)
    for path in [path for folder in ("shards", "data") for path in (out / folder).rglob("*") if path.is_file()]:
        harm(path)
    folder = out / ("shards" if output_format == "webdataset" else "data")
    with pytest.raises(DataError, match=f"^{re.escape(str(folder))}.* cannot be read"):
        find_image(out, image_id)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_stray_file_is_named(tmp_path: Path, output_format: str) -> None:
    out = made(tmp_path, output_format)
    stray = first_file(out).with_name("shard-999999.tar")
    stray.touch()
    assert [problem.path for problem in verify(out).problems] == [stray]


def test_the_metadata_of_an_imagefolder_is_checked(tmp_path: Path) -> None:
    out = made(tmp_path, "imagefolder")
    flip(out / "data" / "metadata.parquet")
    assert [problem.path.name for problem in verify(out).problems] == ["metadata.parquet"]


@pytest.mark.parametrize("field", ["job", "counts", "classes", "models", "shards"])
def test_a_changed_manifest_is_named(tmp_path: Path, field: str) -> None:
    out = made(tmp_path)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[field] = manifest[field][1:] if isinstance(manifest[field], list) else {}
    path.write_text(json.dumps(manifest))
    assert {problem.path for problem in verify(out).problems} == {path}
    path.write_text("{")
    assert {problem.path for problem in verify(out).problems} == {path}


def test_a_changed_record_is_named(tmp_path: Path) -> None:
    out = made(tmp_path)
    connection = sqlite3.connect(out / "ledger.sqlite")
    with connection:
        connection.execute("UPDATE images SET record = replace(record, 'bird', 'bard') WHERE source = 'bird/0.png'")
    connection.close()
    assert "another record" in verify(out).problems[0].message


def test_no_dataset_and_a_dataset_at_work(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="missing"):
        verify(tmp_path)
    out = made(tmp_path)
    with locked(out), pytest.raises(LockedError):
        verify(out)
