"""The main job on the real server with the embedded family: folder in, dataset out, again, and with broken input."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest
from main_job import PHOTOS, SAMPLE, captory, run
from oracle import judge

from captory_data.identity import ONE_PROMPT_AN_IMAGE, identify
from captory_data.spec import MODES, JobSpec


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen sample images of nine classes."""
    folder = tmp_path_factory.mktemp("source")
    for name in sorted(path.name for path in SAMPLE.iterdir()):
        (folder / name).mkdir()
        for image in sorted((SAMPLE / name).glob("*.png"))[:2]:
            shutil.copy(image, folder / name / image.name)
    return folder


def records(out: Path) -> list[dict[str, object]]:
    found = []
    for shard in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = [member for member in tar if member.name.endswith(".json")]
            found += [json.loads(tar.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
    return found


def test_a_folder_becomes_a_dataset_and_a_second_run_does_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(source, out, "--mode", "cip")
    assert first.code == 0, first.stderr
    assert {"items": 18, "images": 18, "failed": 0, "skipped": 0}.items() <= first.summary.items()
    assert first.summary["images_per_s"] > 0
    found = records(out)
    assert len({record["id"] for record in found}) == len({record["seed"] for record in found}) == 18
    assert all(record["prompt"] == f"a photo of {record['class_name']}, {record['caption']}" for record in found)
    assert judge(out, {str(record["id"]) for record in found}).clean
    assert captory("verify", out).code == 0
    page = (out / "report.html").read_text()
    assert "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    shards = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    second = run(source, out)
    assert second.code == 0
    assert {"images": 0, "skipped": 18, "failed": 0}.items() <= second.summary.items()
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == shards


def test_an_image_is_the_same_wherever_it_is_made(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(source, moved)
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run(source, whole, "--determinism", "exact").code == 0
    assert run(moved, part, "--determinism", "exact", "--limit", "5").code == 0
    by_id = {record["id"]: record for record in records(whole)}
    some = records(part)
    assert len(some) == 5
    assert all(by_id[record["id"]]["pixel_sha256"] == record["pixel_sha256"] for record in some)
    again = captory("reproduce", whole, str(some[0]["id"]), "--json")
    assert again.code == 0, again.stderr


def test_other_parameters_on_the_same_out_are_refused_with_what_differs(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(source, out, "--limit", "2").code == 0
    refused = run(source, out, "--limit", "2", "--seed", "7")
    assert refused.code == 2
    assert "seed" in refused.stderr
    assert run(source, out, "--limit", "3").summary["images"] == 1


def test_broken_files_are_rows_and_the_rest_goes_on(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "photos"
    shutil.copytree(source, broken)
    good = sorted(broken.glob("*/*.png"))[0].read_bytes()
    cases = {
        "empty.png": b"",
        "text.jpg": b"this is no image",
        "cut.png": good[: len(good) // 2],
        "header.png": good[:20],
        "noise.webp": bytes(range(256)) * 8,
    }
    for name, data in cases.items():
        (broken / "bass" / name).write_bytes(data)
    out = tmp_path / "out"
    ended = run(broken, out)
    assert ended.code == 3, ended.stderr
    assert {"images": 18, "failed": 5}.items() <= ended.summary.items()
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        reasons = dict(ledger.execute("select source, reason from failures").fetchall())
    assert {f"bass/{name}" for name in cases} == set(reasons)
    assert "" not in reasons.values()
    assert len(set(reasons.values())) >= 3
    assert run(broken, out).summary["skipped"] == 18
    for name in cases:
        (broken / "bass" / name).write_bytes(good)
    mended = run(broken, out, "--retry-failed")
    assert (mended.code, mended.summary["images"]) == (0, 5)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_says_how_its_prompts_were_made(source: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    ended = run(source, out, "--mode", mode, "--limit", "4", "--per-image", "2")
    assert ended.code == 0, ended.stderr
    found = records(out)
    assert len(found) == 8
    assert {record["mode"] for record in found} == {mode}
    indices = {(record["prompt_index"], record["sample_index"]) for record in found}
    assert indices == ({(0, 0), (1, 0)} if mode in ONE_PROMPT_AN_IMAGE else {(0, 0), (0, 1)})
    assert {bool(record["caption"]) for record in found} == {mode != "basic"}
    assert {bool(record["synthetic_captions"]) for record in found} == {mode == "closed-loop"}
    assert {bool(record["caption_source"]) for record in found} == {mode in ("shuffled", "cross-class")}
    assert {record["writer"] == "template" for record in found} == {mode not in ("rewrite", "face")}
    if mode in ("closed-loop", "shuffled"):
        again = captory("reproduce", out, str(found[0]["id"]))
        assert again.code == 0, again.stderr


def test_a_folder_of_one_s_own_instruction_files(source: Path, tmp_path: Path) -> None:
    (tmp_path / "modes").mkdir()
    file = tmp_path / "modes" / "basic.yaml"
    file.write_text("template: a drawing of {c}\nclassless: a drawing\n")
    out = tmp_path / "out"
    done = run(source, out, "--mode", "basic", "--modes", str(file.parent), "--limit", "2")
    assert done.code == 0, done.stderr
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = records(out)
    assert [one["prompt"] for one in found] == [f"a drawing of {one['class_name']}" for one in found]
    assert [one["mode_sha256"] for one in found] == [digest] * 2
    other = run(source, out, "--limit", "3")
    assert (other.code, "another instruction file of mode basic" in other.stderr) == (2, True)
    absent = run(source, tmp_path / "none", "--modes", str(tmp_path / "absent"))
    assert (absent.code, "no folder of instruction files" in absent.stderr) == (2, True)


def test_nothing_to_work_on_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = run(empty, tmp_path / "out")
    assert refused.code == 2
    assert "no items" in refused.stderr


def test_a_server_that_is_not_there_is_said_so(source: Path, tmp_path: Path) -> None:
    ended = run(source, tmp_path / "out", "--server", f"unix:{tmp_path}/nobody.sock")
    assert ended.code in (1, 2)
    assert "server" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("format_", ["imagefolder", "parquet"])
def test_other_formats_load_with_datasets(source: Path, tmp_path: Path, format_: str) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets (make test installs it)")
    out = tmp_path / "out"
    assert run(source, out, "--format", format_).code == 0
    files = {"imagefolder": {"data_dir": str(out / "data")}, "parquet": {"data_files": str(out / "data" / "*.parquet")}}
    loaded = datasets.load_dataset(format_, split="train", cache_dir=str(tmp_path / "cache"), **files[format_])
    assert len(loaded) == 18
    assert loaded[0]["image"].size == (64, 64)
    assert {row["label"] for row in loaded} == set(range(9))


def test_shards_load_with_webdataset(source: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    out = tmp_path / "out"
    assert run(source, out).code == 0
    urls = [str(path) for path in sorted((out / "shards").glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"))
    assert len(samples) == 18
    assert {sample["cls"] for sample in samples} == set(range(9))
    assert all(sample["png"].size == (64, 64) and sample["txt"] == sample["json"]["prompt"] for sample in samples)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/data/photos is not here")
def test_real_photographs(tmp_path: Path) -> None:
    ended = run(PHOTOS, tmp_path / "out", "--limit", "40", "--steps", "1", "--guidance", "1")
    assert ended.code == 0, ended.stderr
    assert ended.summary["images"] == 40
    found = records(tmp_path / "out")
    assert len({record["id"] for record in found}) == 40
    spec = JobSpec(**json.loads((tmp_path / "out" / "manifest.json").read_text())["job"])
    assert all(identify(spec, str(record["source"]), 0, 0).id == record["id"] for record in found)
    assert "world" in ended.stderr
