"""The contact sheet: it shows, it escapes, and it is bounded."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from data_fakes import Maker, failing, finished, job_spec, photo_folder, picture, run

from captory_data.gallery import MAX_SOURCES, MAX_SOURCES_PER_CLASS, Gallery
from captory_data.outcomes import Failure, ItemDone, Outcome, WorkItem
from captory_data.report import write_report_for
from captory_data.source import Payload
from captory_data.thumbnails import thumbnail

EVIL = "<script>alert(1)</script>\"'&amp; <img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page(out: Path) -> str:
    return (out / "report.html").read_text()


def test_it_shows_sources_words_and_images(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "in")
    out = tmp_path / "out"
    run(root, out, Maker(spoil=lambda item: failing(item) if item.key == "cat/2.png" else None), job_spec(per_image=2))
    text, tags = page(out), Tags(page(out))
    assert len(tags.all("article")) == 5
    assert len(tags.all("img")) == 5 + 10
    assert all(str(image["src"]).startswith("data:image/") for image in tags.all("img"))
    for words in (
        "10 synthetic images",
        "drawn, not photographed",
        "a caption of bird/0.png",
        "invalid_image",
        "images/s",
    ):
        assert words in text
    assert tags.all("script") == []
    assert not re.search(r"https?://", text)
    policy = next(meta["content"] for meta in tags.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_it_escapes_every_text(tmp_path: Path) -> None:
    root = tmp_path / "in"
    name = EVIL.replace("/", "_")
    photo_folder(root, classes=(name,), per_class=2)
    (root / name / f"{name}.png").touch()
    spec = job_spec(negative_prompt=EVIL, family=EVIL, sampler=EVIL)
    run(
        root,
        tmp_path / "out",
        Maker(spoil=lambda item: failing(item, EVIL) if item.key.endswith("1.png") else None),
        spec,
    )
    tags = Tags(page(tmp_path / "out"))
    assert tags.all("script") == []
    assert all(str(image["src"]).startswith("data:") and "onerror" not in image for image in tags.all("img"))


def test_it_says_whose_caption_it_is_and_what_was_said_of_drafts(tmp_path: Path) -> None:
    def told(item: WorkItem) -> list[Outcome]:
        made = [replace(finished(item, one.id), synthetic_captions=(f"a cap {EVIL}",)) for one in item.wanted]
        return [*made, ItemDone(item.key)]

    out = tmp_path / "out"
    run(photo_folder(tmp_path / "in", classes=("bat",)), out, Maker(spoil=told), job_spec(mode="shuffled"))
    text = page(out)
    assert {f"caption and picture of bat/{k}.png" in text for k in range(3)} == {True}
    assert text.count("caption of a first synthetic image") == 3
    assert "a cap &lt;script&gt;" in text
    assert Tags(text).all("script") == []


def test_only_what_is_published_is_more(tmp_path: Path) -> None:
    def lose(item: WorkItem) -> list[Outcome]:
        made = [finished(item, wanted.id) for wanted in item.wanted[:10]]
        lost = [Failure(item.key, wanted.id, "blank", "", dropped=True) for wanted in item.wanted[10:]]
        return [*made, *lost, ItemDone(item.key)]

    root = photo_folder(tmp_path / "in", classes=("a",), per_class=1)
    run(root, tmp_path / "out", Maker(spoil=lose), job_spec(per_image=12))
    assert "synthetic, 2 more in the dataset" in page(tmp_path / "out")


@pytest.mark.parametrize("output_format", ["webdataset", "imagefolder", "parquet"])
def test_it_is_the_same_when_written_again(tmp_path: Path, output_format: str) -> None:
    out = tmp_path / "out"
    run(photo_folder(tmp_path / "in"), out, spec=job_spec(output_format=output_format))
    before = page(out)
    (out / "report.html").unlink()
    write_report_for(out)
    assert page(out) == before


def test_it_shows_a_bounded_number(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(
        photo_folder(tmp_path / "in", classes=("a",), per_class=MAX_SOURCES_PER_CLASS + 2),
        out,
        spec=job_spec(per_image=9),
    )
    tags = Tags(page(out))
    assert len(tags.all("article")) == MAX_SOURCES_PER_CLASS
    assert "96 of 126 images are shown; 30 are not" in page(out)


def test_a_damaged_shard_does_not_stop_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photo_folder(tmp_path / "in"), out)
    (out / "shards" / "shard-000000.tar").write_bytes(b"x" * 2048)
    write_report_for(out)
    assert len(Tags(page(out)).all("article")) == 3


def test_gallery_shares_its_places() -> None:
    gallery, payload = Gallery(100, []), Payload(caption="words")
    shown = [gallery.picture(str(number % 100), payload)[0] for number in range(1000)]
    assert sum(shown) == 200
    assert Gallery(1, [None] * MAX_SOURCES).picture("a", payload) == (False, None)
    broken = Gallery(1, [])
    assert broken.picture("a", Payload(image=b"no image")) == (False, None)
    assert broken.picture("a", Payload(image=picture()))[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_thumbnails(kind: str) -> None:
    small = thumbnail(picture(1, kind, (400, 200)), 100)
    assert small is not None
    assert small.startswith(b"\xff\xd8")
    assert thumbnail(picture(1, kind, (400, 200))[:60]) is None
