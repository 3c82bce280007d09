"""Full disks, failing flushes, read-only folders, damage, and two runs at once."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_fakes import Maker, job_spec, photo_folder, requested, run, run_durably
from oracle import judge

from captory_data.dataset import Dataset
from captory_data.errors import FatalStorageError, LedgerError, LockedError
from captory_data.lock import locked
from captory_data.spec import JobSpec

FORMATS = ("webdataset", "imagefolder", "parquet")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def noise(seed: int, kind: str) -> bytes:
    """What looks like an image, and cannot be packed."""
    return b"\x89PNG\r\n\x1a\n" + random.Random(f"{seed} {kind}").randbytes(40_000)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_full_disk_pauses_the_job(
    tmp_path: Path, small_disk: Path, output_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_fakes.picture", noise)
    (tmp_path / "in").mkdir()
    rows = [{"file_name": f"{k}", "caption": "words"} for k in range(12)]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out, spec = small_disk / "out", job_spec(output_format=output_format)
    summary = run(tmp_path / "in", out, spec=spec)
    assert summary.exit_code == 1
    assert summary.error is not None
    assert "pace" in summary.error or "full" in summary.error
    assert 0 < summary.images < 12
    assert list(out.rglob("*.tmp")) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = run(tmp_path / "in", out, spec=spec)
    assert (again.exit_code, again.images + again.skipped) == (0, 12)
    assert judge(out, requested(tmp_path / "in", spec)).clean


class Failing:
    """One call of an operating system function fails; the ones after it are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, when: int, code: int) -> None:
        self.calls = 0
        real = getattr(os, name) if name != "fsync" else lambda descriptor: None

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == when:
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        monkeypatch.setattr(os, name, call)


def outcome(root: Path, out: Path, spec: JobSpec) -> str:
    """What stopped the run, before it began or within it."""
    try:
        return str(run_durably(root, out, spec=spec).error)
    except FatalStorageError as error:
        return str(error)


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize(("name", "code"), [("fsync", errno.EIO), ("replace", errno.ENOSPC)])
def test_a_refusal_ends_the_run_and_is_not_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: str, name: str, code: int
) -> None:
    root, spec = photo_folder(tmp_path / "in"), job_spec(output_format=output_format)
    for when in (1, 2, 3, 5):
        out = tmp_path / f"{when}"
        with monkeypatch.context() as patch:
            failing = Failing(patch, name, when, code)
            patch.setattr("captory_data.database.SYNCHRONOUS", "OFF")
            assert outcome(root, out, spec).startswith("cannot write")
            assert failing.calls >= when
        assert run(root, out, spec=spec).exit_code == 0
        assert judge(out, requested(root, spec)).clean


def test_nothing_is_published_after_a_failed_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = photo_folder(tmp_path / "in", per_class=20), tmp_path / "out"
    real = os.replace

    def refuse(source: Path, target: Path) -> None:
        if "shards" in str(target):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    maker = Maker()
    summary = run(root, out, maker)
    assert (summary.images, summary.exit_code) == (0, 1)
    assert len(maker.seen) < 40
    assert list((out / "shards").iterdir()) == []


@pytest.mark.parametrize("when", range(3, 12))
def test_nothing_is_written_after_a_failed_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(root, out, limit=1)
    then: list[dict[Path, bytes]] = []
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            then.append(contents(out))
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr("captory_data.database.SYNCHRONOUS", "OFF")
        summary = run_durably(root, out)
    if then:
        assert (summary.exit_code, calls) == (1, when)
        assert str(summary.error).startswith("cannot write")
        assert contents(out) == then[0]
    assert run(root, out).exit_code == 0
    assert judge(out, requested(root, job_spec())).clean


def test_nothing_is_published_after_the_ledger_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(root, out, limit=1)
    before = contents(out)

    def refuse(*_: object) -> None:
        raise FatalStorageError("ledger.sqlite: disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "check_maker", refuse)
        summary = run(root, out)
    assert (summary.exit_code, summary.error) == (1, "ledger.sqlite: disk I/O error")
    assert contents(out) == before
    assert run(root, out).images == 5


def contents(out: Path) -> dict[Path, bytes]:
    """Every whole file of an output folder."""
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".tmp"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(FatalStorageError, match="writable"):
        run(photo_folder(tmp_path / "in"), tmp_path / "closed" / "out")


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(FatalStorageError, match="out"):
        run(photo_folder(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize("place", [0, 20, 100])
def test_a_damaged_ledger_is_refused_by_name(tmp_path: Path, place: int) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(root, out)
    path = out / "ledger.sqlite"
    data = bytearray(path.read_bytes())
    data[place : place + 12] = b"\xff" * 12
    path.write_bytes(data)
    shards = {shard: shard.read_bytes() for shard in (out / "shards").iterdir()}
    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        run(root, out)
    assert {shard: shard.read_bytes() for shard in (out / "shards").iterdir()} == shards


def test_a_missing_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(root, out)
    (out / "ledger.sqlite").unlink()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite is missing"):
        run(root, out)
    assert len(list((out / "shards").iterdir())) == 2


def test_a_lost_manifest_is_written_again(tmp_path: Path) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(root, out)
    before = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_text("{")
    assert run(root, out).images == 0
    assert (out / "manifest.json").read_bytes() == before


def test_a_strangers_files_are_left_alone(tmp_path: Path) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    for output_format in FORMATS:
        place = out / output_format
        run(root, place, spec=job_spec(output_format=output_format))
        folder = place / ("shards" if output_format == "webdataset" else "data")
        (folder / "notes.txt").write_text("mine")
        (folder / "holiday.png").write_text("mine")
        run(root, place, spec=job_spec(output_format=output_format))
        assert (folder / "notes.txt").exists()
        assert (folder / "holiday.png").exists()


def test_two_runs_at_once(tmp_path: Path) -> None:
    root, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(root, out, limit=1)
    with locked(out), pytest.raises(LockedError, match=f"in use by process {os.getpid()}"):
        run(root, out)
    assert run(root, out).images == 5
