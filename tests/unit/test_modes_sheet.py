"""The sheet of prompt modes: its source, what it reads of a dataset, and what it draws."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captory_data.spec import MODES
from captory_engine.repository import default_repository
from captory_training.evaluation_sheet import MISSING
from captory_training.modes_sheet import (
    EACH,
    GAP_PX,
    PICTURE_PX,
    ROWS,
    SHOWN,
    Example,
    Row,
    modes_sheet,
    read_examples,
    run_job,
    scenes_to_show,
    write_source,
)
from captory_training.picto.scene import Scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return scenes_to_show()


def keys(scenes: list[Scene]) -> list[str]:
    return [f"{scene.kind}-{scene.seed}" for scene in scenes]


def test_every_mode_has_a_row() -> None:
    assert {row.label for row in ROWS} >= set(MODES)


def test_a_kind_has_a_partner_and_kinds_take_turns(scenes: list[Scene]) -> None:
    assert [scene.kind for scene in scenes[: len(SHOWN)]] == list(SHOWN)
    assert Counter(scene.kind for scene in scenes) == dict.fromkeys(SHOWN, EACH)
    assert len({scene.seed for scene in scenes}) == len(scenes)


def test_the_source_tells_classes_and_the_attributes_of_faces(tmp_path: Path, scenes: list[Scene]) -> None:
    classes = write_source(tmp_path, scenes)
    with (tmp_path / "pictures" / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == [f"{key}.png" for key in keys(scenes)]
    assert all((tmp_path / "pictures" / row["file_name"]).is_file() for row in rows)
    faces = {row["class_id"] for row in rows if row["attributes"]}
    assert faces == {"face"}
    assert all(len(row["attributes"].split(";")) >= 4 for row in rows if row["class_id"] == "face")
    assert classes.read_text().splitlines()[:2] == ["id,name,curated", "crane_bird,crane,crane bird"]


def add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))


def test_examples_are_read_by_the_picture_they_are_of(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 8, 7)).save(image, "PNG")
    words = {"caption": "a hat", "prompt": "a photo of face, a hat", "attributes": ["young", "a hat"]}
    record = {"id": "a1", "source": "face-3.png", "mode": "face", "caption_source": "", "synthetic_captions": []}
    lent = {"id": "a2", "source": "face-5.png", "mode": "shuffled", "caption_source": "face-4.png"}
    lent |= {"synthetic_captions": ["a cap"]}
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar", "w") as shard:
        for one in (record, lent):
            add(shard, f"{one['id']}.png", image.getvalue())
            add(shard, f"{one['id']}.json", json.dumps(words | one).encode())
    examples = read_examples(tmp_path)
    assert examples.keys() == {"face-3", "face-5"}
    assert examples["face-3"].before == ("attributes: young, a hat", "caption: a hat")
    assert examples["face-5"].before == ("caption of face-4: a hat", "caption of the draft: a cap")
    assert examples["face-3"].prompt == "a photo of face, a hat"
    assert examples["face-5"].picture.getpixel((0, 0)) == (9, 8, 7)


def test_the_sheet_shows_what_there_is_and_greys_what_is_not(scenes: list[Scene]) -> None:
    shown = scenes[:2]
    example = Example(Image.new("RGB", (64, 64), (200, 0, 0)), ("a caption",), "a prompt " * 60)
    sheet = modes_sheet(shown, {"basic": {keys(shown)[0]: example}})
    taller = modes_sheet(shown, {"basic": {}, "cip": {}})
    assert sheet.width == taller.width
    assert taller.height - sheet.height == PICTURE_PX + GAP_PX
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert {(200, 0, 0), MISSING} <= colours
    assert np.asarray(sheet).std() > 10


def test_a_row_is_a_real_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scenes: list[Scene]) -> None:
    if not any(default_repository().glob("*/family.yaml")):
        pytest.skip("there is no embedded family here")
    for name in ("CAPTORY_WRITER", "CAPTORY_CAPTIONER"):
        monkeypatch.setenv(name, "vllm://127.0.0.1:1")  # the sheet is of the embedded family
    classes = write_source(tmp_path, scenes)
    row = Row("cip", ("--mode", "cip", "--steps", "1"))
    examples = run_job(row, tmp_path / "pictures", classes, tmp_path / "out")
    assert examples.keys() == set(keys(scenes))
    for example in examples.values():
        [caption] = example.before
        assert example.prompt.endswith(caption.replace("caption: ", ", "))
    with pytest.raises(RuntimeError, match="cip"):
        run_job(row, tmp_path / "nothing", classes, tmp_path / "other")
