"""Inputs: every kind, and what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_fakes import make_tar, photo_folder, picture

from captory_data.errors import ItemError, SourceError
from captory_data.source import Source, open_source
from captory_data.sources import entry, files
from captory_data.sources.columns import MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES
from captory_data.sources.entry import MAX_FILE_BYTES


def keys(source: Source) -> list[str]:
    return [item.key for item in source]


def reasons(source: Source) -> dict[str, str]:
    found = {}
    for item in source:
        try:
            item.load()
        except ItemError as error:
            found[item.key] = error.reason
    return found


def test_class_folders(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in", classes=("b", "a", "a-b"), per_class=2)
    (root / "a" / "deep").mkdir()
    (root / "a" / "deep" / "x.JPG").write_bytes(picture())
    (root / "loose.png").write_bytes(picture())
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(picture())
    source = open_source(root)
    assert keys(source) == sorted(keys(source))
    assert keys(source) == [
        "a-b/0.png",
        "a-b/1.png",
        "a/0.png",
        "a/1.png",
        "a/deep/x.JPG",
        "b/0.png",
        "b/1.png",
        "loose.png",
    ]
    assert [item.class_id for item in source] == ["a-b", "a-b", "a", "a", "a", "b", "b", None]
    assert source.ignored == 2
    assert source.classes.ids() == ["a", "a-b", "b"]
    assert next(iter(source)).load().image == (root / "a-b" / "0.png").read_bytes()


def test_metadata_jsonl_lets_items_enter_anywhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(picture())
    rows: list[object] = [
        {"file_name": "images/1.png", "label": 3, "class_name": "crane bird"},
        {"file_name": "./images/2.png", "text": "a red kite"},
        {"file_name": "images/3.png", "prompt": "a photo of a kite", "class_id": "kite"},
        {"file_name": "images/1.png"},
        {"file_name": "../secret.png"},
        {"file_name": "/etc/passwd"},
        {"label": 1},
        [1, 2],
        {"file_name": "images/missing.png"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n\n")
    source = open_source(tmp_path)
    items = {item.key: item for item in source}
    assert (items["images/1.png"].class_id, items["images/1.png"].class_name) == ("3", "crane bird")
    assert items["images/1.png"].load().image == picture()
    assert items["images/2.png"].load().caption == "a red kite"
    assert items["images/3.png"].load().prompt == "a photo of a kite"
    assert sorted(reasons(source).values()) == [
        "BAD_KEY",
        "BAD_KEY",
        "BAD_METADATA",
        "BAD_METADATA",
        "BAD_METADATA",
        "DUPLICATE_KEY",
        "UNREADABLE",
    ]
    again = {item.key: item for item in open_source(tmp_path, recaption=True)}
    with pytest.raises(ItemError, match="No such file"):
        again["images/2.png"].load()


def test_metadata_csv(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "metadata.csv").write_text("\ufefffile_name,label,caption\na.png,cat,\nb.png,,two cats\n")
    source = open_source(tmp_path)
    assert [(item.key, item.class_id) for item in source] == [("a.png", "cat"), ("b.png", None)]
    assert [item.load().caption for item in source] == [None, "two cats"]
    (tmp_path / "metadata.csv").write_text("name,label\na.png,cat\n")
    with pytest.raises(SourceError, match="no column file_name"):
        open_source(tmp_path)


def test_tars(tmp_path: Path) -> None:
    second = make_tar(
        tmp_path / "b.tar",
        [
            ("./z.png", picture(1)),
            ("./z.cls", b"4"),
            ("y.jpg", picture(2, "JPEG")),
            ("y.json", b'{"class_id": "7", "class_name": "seven"}'),
            ("w.txt", b"only words"),
            ("../out.png", picture(3)),
            ("bad.png", picture(4)),
            ("bad.json", b"[]"),
            ("z.png", picture(5)),
        ],
    )
    make_tar(tmp_path / "a.tar", [("k.png", picture(6)), ("k.txt", b"a caption")])
    source = open_source(tmp_path)
    assert keys(source)[0] == "a.tar/k"
    items = {item.key: item for item in source}
    assert items["b.tar/z"].load().image == picture(1)
    assert items["b.tar/z"].class_id == "4"
    assert items["b.tar/y"].class_name == "seven"
    assert items["b.tar/w"].load().caption == "only words"
    assert reasons(source) == {
        "b.tar/../out": "BAD_KEY",
        "b.tar/bad": "BAD_METADATA",
        next(key for key in items if "#duplicate" in key): "DUPLICATE_KEY",
    }
    assert keys(open_source(second)) == [key for key in keys(source) if key.startswith("b.tar")]
    assert {item.key: item for item in open_source(tmp_path, recaption=True)}["a.tar/k"].load().image == picture(6)


def test_a_truncated_tar_gives_what_it_has(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", [("a.png", picture(1)), ("b.png", picture(2) * 50)])
    path.write_bytes(path.read_bytes()[:2600])
    source = open_source(path)
    assert reasons(source).get("t.tar") == "CORRUPT_ARCHIVE"
    assert {item.key: item for item in source}["t.tar/a"].load().image == picture(1)
    (tmp_path / "t.tar").write_bytes(b"not a tar" * 200)
    assert reasons(open_source(tmp_path / "t.tar")) == {"t.tar": "CORRUPT_ARCHIVE"}


def test_links_devices_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "folder").mkdir()
    (root / "good.png").write_bytes(picture())
    (root / "inside.png").symlink_to(root / "good.png")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path / "folder")
    (root / "empty.png").touch()
    os.mkfifo(root / "pipe.png")
    with open(root / "huge.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert reasons(open_source(root)) == {
        "out.png": "OUTSIDE_INPUT",
        "folder": "OUTSIDE_INPUT",
        "empty.png": "EMPTY_FILE",
        "pipe.png": "UNREADABLE",
        "huge.png": "TOO_LARGE",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_and_folder(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in", per_class=1)
    (root / "bird" / "0.png").chmod(0)
    (root / "cat").chmod(0)
    assert reasons(open_source(root)) == {"bird/0.png": "UNREADABLE", "cat": "UNREADABLE"}


def test_an_error_of_the_disk_is_the_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photo_folder(tmp_path / "in", classes=("a",), per_class=1)
    source = open_source(root)

    def refuse(name: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", refuse)
    assert reasons(source) == {"a/0.png": "UNREADABLE"}


def test_odd_names_are_spelled_out(tmp_path: Path) -> None:
    for name in (b"new\nline.png", b"\xff.png", "\u202ertl.png".encode(), b"back\\slash.png", "grün.png".encode()):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(picture())
    source = open_source(tmp_path)
    assert keys(source) == ["\\u202ertl.png", "\\udcff.png", "back\\\\slash.png", "grün.png", "new\\u000aline.png"]
    assert reasons(source) == {}


@pytest.mark.parametrize("make", ["empty", "no images", "missing", "file", "both metadata", "tar and images"])
def test_inputs_that_cannot_be_used(tmp_path: Path, make: str) -> None:
    path = tmp_path / "in"
    if make != "missing":
        path.mkdir()
    if make == "no images":
        (path / "a.txt").write_text("x")
    if make == "file":
        path = path / "x.zip"
        path.write_bytes(b"x")
    if make == "both metadata":
        (path / "metadata.csv").touch()
        (path / "metadata.jsonl").touch()
    if make == "tar and images":
        (path / "a.tar").touch()
        (path / "a.png").touch()
    with pytest.raises(SourceError) as caught:
        open_source(path)
    assert caught.value.exit_code == 2
    if make in ("empty", "no images"):
        assert "metadata.jsonl" in str(caught.value)


def test_the_output_is_not_an_input(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in")
    photo_folder(root / "out")
    assert len(open_source(root, exclude=root / "out")) == 6
    with pytest.raises(SourceError, match="same folder"):
        open_source(root, exclude=root)


def test_classes_file(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in", classes=("n01", "n02", "zzz"), per_class=1)
    texts = {
        "c.csv": "class_id,class_name\nn01,crane bird\nn02,crane machine\n",
        "c.json": '{"n02": "crane machine", "n01": "crane bird"}',
        "c.yaml": "n01: crane bird\nn02: crane machine\n",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_text(text)
        source = open_source(root, classes=path)
        assert source.classes.ids() == ["n01", "n02"]
        assert [item.class_name for item in source] == ["crane bird", "crane machine", ""]
        assert reasons(source) == {"zzz/0.png": "UNKNOWN_CLASS"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "id,name,curated\nn01,crane,crane (bird)\nn02, crane ,crane (machine)\n"),
        (
            "c.json",
            '{"n01": {"name": "crane", "curated": "crane (bird)"},'
            ' "n02": {"name": "crane", "curated": "crane (machine)"}}',
        ),
        ("c.yaml", "n01: {name: crane, curated: crane (bird)}\nn02: {name: crane, curated: crane (machine)}\n"),
    ],
)
def test_classes_have_a_raw_and_a_curated_name(tmp_path: Path, name: str, text: str) -> None:
    root = photo_folder(tmp_path / "in", classes=("n01", "n02"), per_class=1)
    (tmp_path / name).write_text(text)
    raw = open_source(root, classes=tmp_path / name)
    curated = open_source(root, classes=tmp_path / name, class_names="curated")
    assert [item.class_name for item in raw] == ["crane", "crane"]
    assert [item.class_name for item in curated] == ["crane (bird)", "crane (machine)"]
    assert [item.class_id for item in raw] == [item.class_id for item in curated] == ["n01", "n02"]


def test_curated_names_that_are_not_there_are_missed(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in", classes=("n01", "n02"), per_class=1)
    with pytest.raises(SourceError, match="curated class names come from a classes file"):
        open_source(root, class_names="curated")
    for text in ("n01,crane\nn02,crane\n", "id,name,curated\nn01,crane,crane (bird)\nn02,crane,\n"):
        (tmp_path / "c.csv").write_text(text)
        assert len(open_source(root, classes=tmp_path / "c.csv")) == 2
        with pytest.raises(SourceError, match=r"class n0[12] has no curated name"):
            open_source(root, classes=tmp_path / "c.csv", class_names="curated")


def test_attributes_come_beside_an_image_or_a_caption(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "metadata.csv").write_text(
        "file_name,attributes,caption,prompt\n"
        "a.png, young ;; a hat;,,\nb.png,old,a face,\nc.png,old,,a prompt\nd.png,,a face,\n"
    )
    loaded = {item.key: item.load() for item in open_source(tmp_path)}
    assert (loaded["a.png"].image, loaded["a.png"].attributes) == (picture(), ("young", "a hat"))
    assert (loaded["b.png"].caption, loaded["b.png"].attributes) == ("a face", ("old",))
    assert (loaded["c.png"].prompt, loaded["c.png"].attributes) == ("a prompt", ())
    assert loaded["d.png"].attributes == ()


TOO_MANY = {
    "many": ["a"] * (MAX_ATTRIBUTES + 1),
    "large": ["é" * (MAX_ATTRIBUTES_BYTES // 2), "x"],
    "long": "x" * (MAX_ATTRIBUTES_BYTES + 1),
    "number": 7,
    "object": {"young": 1},
    "numbers": ["young", 1],
}


def test_attributes_may_be_a_list_of_texts(tmp_path: Path) -> None:
    listed = {
        "a.png": (["young", " a\nhat ", "", "red; or not", "\x00\x9f"], ("young", "a hat", "red; or not")),
        "b.png": ("young\x07;\x85;a\u2028hat;\ud800", ("young", "a hat", "?")),
        "c.png": (["a"] * MAX_ATTRIBUTES + [" "], ("a",) * MAX_ATTRIBUTES),
        "d.png": (["é" * (MAX_ATTRIBUTES_BYTES // 2)], ("é" * (MAX_ATTRIBUTES_BYTES // 2),)),
        "e.png": ([], ()),
        "f.png": (None, ()),
    }
    (tmp_path / "rows").mkdir()
    rows = [{"file_name": key, "caption": "x", "attributes": given} for key, (given, _) in listed.items()]
    members = [(f"{key[0]}.json", json.dumps(row).encode()) for key, row in zip(listed, rows, strict=True)]
    (tmp_path / "rows" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for path in (tmp_path / "rows", make_tar(tmp_path / "t.tar", members)):
        assert [item.load().attributes for item in open_source(path)] == [read for _, read in listed.values()]


def test_a_row_with_wrong_attributes_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    rows = [{"file_name": f"{name}.png", "caption": "x", "attributes": given} for name, given in TOO_MANY.items()]
    rows.append({"file_name": "right.png", "caption": "x", "attributes": "young"})
    (tmp_path / "rows" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    members = [(str(row["file_name"]).replace("png", "json"), json.dumps(row).encode()) for row in rows]
    assert set(reasons(open_source(tmp_path / "rows"))) == {f"{name}.png" for name in TOO_MANY}
    assert reasons(open_source(make_tar(tmp_path / "t.tar", members))) == {
        f"t.tar/{name}": "BAD_METADATA" for name in TOO_MANY
    }


def test_attributes_alone_are_an_item_that_fails(tmp_path: Path) -> None:
    members = [("a.json", b'{"attributes": ["young"]}'), ("b.json", b'{"attributes": []}'), ("c.txt", b"words")]
    source = open_source(make_tar(tmp_path / "t.tar", members))
    assert (keys(source), source.ignored) == (["t.tar/a", "t.tar/c"], 1)
    assert reasons(source) == {"t.tar/a": "BAD_METADATA"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "id,name\na,b\nn01, \n"),
        ("c.json", '{"a": "b", "n01": " "}'),
        ("c.json", '{"n01": {"name": "", "curated": "c"}}'),
        ("c.yaml", "n01: {name: ' ', curated: c}\n"),
    ],
)
@pytest.mark.parametrize("class_names", ["raw", "curated"])
def test_a_class_without_a_name_is_told(tmp_path: Path, name: str, text: str, class_names: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=r"n01 is a class without a name|class a has no curated name"):
        open_source(photo_folder(tmp_path / "in"), classes=tmp_path / name, class_names=class_names)


def test_names_are_stripped(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in", classes=("n01",), per_class=1)
    (tmp_path / "c.json").write_text('{" n01 ": {"name": " crane ", "curated": "\\ta crane\\n"}}')
    for which, name in (("raw", "crane"), ("curated", "a crane")):
        assert [item.class_name for item in open_source(root, classes=tmp_path / "c.json", class_names=which)] == [name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "a,b,c\n"),
        ("c.csv", "id,name,curated\na,b\n"),
        ("c.csv", "id,name,other\na,b,c\n"),
        ("c.json", '{"a": {"curated": "b"}}'),
        ("c.json", '{"a": {"name": "b", "other": "c"}}'),
        ("c.json", '{"a": {"name": ["b"]}}'),
        ("c.json", '{" ": "b"}'),
        ("c.json", '{"a": "b", " a": "c"}'),
        ("c.csv", "a,b\na,c\n"),
        ("c.csv", ""),
        ("c.json", "[1]"),
        ("c.json", '{"a": {}}'),
        ("c.yaml", "no: x\n"),
        ("c.yaml", "a: [\n"),
        ("c.txt", "a,b\n"),
    ],
)
def test_wrong_classes_files(tmp_path: Path, name: str, text: str) -> None:
    root = photo_folder(tmp_path / "in")
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=name):
        open_source(root, classes=tmp_path / name)


def test_a_text_that_is_too_long(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "caption": "x" * (entry.MAX_TEXT_BYTES + 1)}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert reasons(open_source(tmp_path)) == {"a.png": "TOO_LARGE"}
