"""Whose caption an item gets in the control arms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from data_fakes import Maker, job_spec, photo_folder, picture, requested, run
from hypothesis import given
from hypothesis import strategies as st
from oracle import judge

from captory_data.dataset import find_image
from captory_data.errors import ItemError
from captory_data.identity import wanted_images
from captory_data.partners import Partners, pairing
from captory_data.source import Source, SourceItem, open_source
from captory_data.sources.entry import Entry

ARMS = ("shuffled", "cross-class")
Listed = list[tuple[str, str | None]]  # keys and their classes
KEYS = st.text("abcdefg/.", min_size=1, max_size=6)
INPUTS = st.dictionaries(KEYS, st.none() | st.sampled_from(["bat", "crane", "ä", "z"]), min_size=1, max_size=25)


def source_of(listed: Iterable[tuple[str, str | None]]) -> Source:
    return Source(Path(), ((key, Entry(class_id=class_id, path=key)) for key, class_id in listed))


def partners_of(listed: Iterable[tuple[str, str | None]], seed: int, *, other_class: bool) -> dict[str, SourceItem]:
    with closing(source_of(listed)) as source, closing(Partners(source, seed, other_class=other_class)) as partners:
        return {item.key: partners.paired(item) for item in source}


def lenders(paired: dict[str, SourceItem]) -> dict[str, str]:
    """Who lends to whom; who gets nothing is left out."""
    return {key: item.caption_source for key, item in paired.items() if item.partner is not None}


@given(INPUTS, st.integers(0, 2**53 - 1))
def test_a_shuffled_caption_is_another_s_of_the_class_and_each_is_used_once(
    classes: dict[str, str | None], seed: int
) -> None:
    lent = lenders(partners_of(classes.items(), seed, other_class=False))
    sizes = Counter(classes.values())
    assert set(lent) == {key for key in classes if sizes[classes[key]] > 1}
    assert all(key != lender and classes[key] == classes[lender] for key, lender in lent.items())
    assert sorted(lent.values()) == sorted(lent)


@given(INPUTS, st.integers(0, 2**53 - 1))
def test_a_cross_class_caption_is_never_of_the_own_class(classes: dict[str, str | None], seed: int) -> None:
    lent = lenders(partners_of(classes.items(), seed, other_class=True))
    several = len({one for one in classes.values() if one is not None}) > 1
    assert set(lent) == {key for key, one in classes.items() if several and one is not None}
    assert all(classes[lender] not in (None, classes[key]) for key, lender in lent.items())


@given(INPUTS, st.integers(0, 2**53 - 1), st.randoms(), st.booleans())
def test_partners_depend_on_seed_and_input_alone(
    classes: dict[str, str | None], seed: int, random: object, other_class: bool
) -> None:
    mixed = list(classes.items())
    random.shuffle(mixed)  # type: ignore[attr-defined]
    once = lenders(partners_of(classes.items(), seed, other_class=other_class))
    assert lenders(partners_of(mixed, seed, other_class=other_class)) == once


@pytest.mark.parametrize("other_class", [False, True])
def test_another_seed_gives_other_partners(other_class: bool) -> None:
    listed: Listed = [(f"{k}.png", ("bat", "crane", "mug")[k % 3]) for k in range(60)]
    first, second = (lenders(partners_of(listed, seed, other_class=other_class)) for seed in (1, 2))
    assert sum(first[key] != second[key] for key in first) > 30


def test_every_other_class_lends() -> None:
    listed: Listed = [(f"{k}.png", "bat") for k in range(300)] + [("a.png", "crane"), ("b.png", "mug")]
    lent = Counter(lenders(partners_of(listed, 0, other_class=True)).values())
    assert 100 < lent["a.png"] < 200
    assert lent["a.png"] + lent["b.png"] >= 300


@pytest.mark.parametrize("other_class", [False, True])
def test_who_has_no_partner_says_so(other_class: bool) -> None:
    paired = partners_of([("a.png", "bat"), ("b.png", None)], 0, other_class=other_class)
    for item in paired.values():
        with pytest.raises(ItemError) as refused:
            item.load()
        assert refused.value.reason == "NO_PARTNER"
        assert "class" in refused.value.message


def test_what_is_broken_or_brings_a_prompt_lends_nothing(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "label": "bat"},
        {"file_name": "b.png", "label": "bat", "prompt": "a bat"},
        {"file_name": "c.png", "label": "bat", "caption": "a club"},
        {"label": "bat"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.png").write_bytes(picture())
    with closing(open_source(tmp_path)) as source, pairing(source, job_spec(mode="shuffled")) as paired:
        items = {item.key: paired(item) for item in source}
    assert {items[key].caption_source for key in ("a.png", "c.png")} == {"a.png", "c.png"}
    assert items["a.png"].load().caption == "a club"
    assert items["c.png"].load().image == picture()
    assert items["b.png"].caption_source in ("a.png", "c.png")
    [broken] = [item for key, item in items.items() if key.startswith("metadata")]
    with pytest.raises(ItemError, match="no file_name"):
        broken.load()


def test_other_modes_leave_items_as_they_are(tmp_path: Path) -> None:
    with closing(open_source(photo_folder(tmp_path / "in"))) as source, pairing(source, job_spec()) as paired:
        assert all(paired(item) is item for item in source)


@pytest.mark.parametrize("mode", ARMS)
def test_a_run_sends_the_partner_s_picture_under_the_own_class(tmp_path: Path, mode: str) -> None:
    photos, out, spec, maker = photo_folder(tmp_path / "in"), tmp_path / "out", job_spec(mode=mode), Maker()
    summary = run(photos, out, maker, spec)
    assert (summary.images, summary.failed) == (6, 0)
    assert judge(out, requested(photos, spec)).clean
    for item in maker.seen:
        [wanted] = item.wanted
        assert wanted == wanted_images(spec, item.key)[0]
        record, _ = find_image(out, wanted.id)
        lender = record.caption_source
        assert item.image == (photos / lender).read_bytes() != (photos / item.key).read_bytes()
        assert (record.source, record.class_id, item.class_name) == (item.key, *item.key.split("/")[:1] * 2)
        assert (lender.split("/")[0] == record.class_id) is (mode == "shuffled")


@pytest.mark.parametrize("mode", ARMS)
def test_a_run_in_parts_has_the_partners_of_a_run_in_one(tmp_path: Path, mode: str) -> None:
    photos, spec = photo_folder(tmp_path / "in", per_class=5), job_spec(mode=mode)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(photos, whole, spec=spec)
    for limit in (2, 7, None):
        run(photos, parts, spec=spec, limit=limit)
    for image_id in requested(photos, spec):
        assert find_image(parts, image_id) == find_image(whole, image_id)


def test_a_class_of_one_image_is_a_row_of_failures(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "in")
    (photos / "mug").mkdir()
    (photos / "mug" / "0.png").write_bytes(picture(99))
    maker = Maker()
    summary = run(photos, tmp_path / "out", maker, job_spec(mode="shuffled", per_image=2))
    assert (summary.images, summary.failed, summary.exit_code) == (12, 2, 3)
    assert "mug" not in {item.class_id for item in maker.seen}


def test_a_partner_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "in", classes=("bat",), per_class=2)
    (photos / "bat" / "1.png").write_bytes(b"")
    summary = run(photos, tmp_path / "out", spec=job_spec(mode="shuffled"))
    assert (summary.images, summary.failed) == (1, 1)
    with closing(open_source(photos)) as source, pairing(source, job_spec(mode="shuffled")) as paired:
        first = paired(next(iter(source)))
    with pytest.raises(ItemError, match=r"its partner bat/1\.png: it has zero bytes"):
        first.load()
