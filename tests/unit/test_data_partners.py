"""Whose caption an item gets in the control arms."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from data_fakes import Maker, failing, job_spec, make_tar, photo_folder, picture, requested, run
from hypothesis import given
from hypothesis import strategies as st
from oracle import judge

from captory_data.dataset import find_image
from captory_data.errors import ItemError, SpecError
from captory_data.identity import wanted_images
from captory_data.partners import Partners, with_partners
from captory_data.planning import Plan, plan_items, plan_job
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


def sha256_of(listed: Iterable[tuple[str, str | None]], seed: int = 0) -> str:
    with closing(source_of(listed)) as source, closing(Partners(source, seed, other_class=False)) as partners:
        return partners.sha256


def paired(path: Path) -> dict[str, SourceItem]:
    """Every item of an input, as a job in mode shuffled has them."""
    with closing(open_source(path)) as source, closing(Partners(source, 7, other_class=False)) as partners:
        return {item.key: partners.paired(item) for item in source}


def never_asked(*_: object, **__: object) -> None:
    pytest.fail("there is nothing to pair")


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
    items = paired(tmp_path)
    assert {items[key].caption_source for key in ("a.png", "c.png")} == {"a.png", "c.png"}
    assert items["a.png"].load().caption == "a club"
    assert items["c.png"].load().image == picture()
    assert items["b.png"].caption_source in ("a.png", "c.png")
    [broken] = [item for key, item in items.items() if key.startswith("metadata")]
    with pytest.raises(ItemError, match="no file_name"):
        broken.load()


def test_other_modes_leave_items_as_they_are(tmp_path: Path) -> None:
    with closing(open_source(photo_folder(tmp_path / "in"))) as source:
        planned = list(plan_items(source, job_spec(), None))
        assert list(with_partners(iter(planned), source, job_spec(), never_asked, lambda: False)) == planned


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
    with pytest.raises(ItemError, match=r"its partner bat/1\.png: it has zero bytes"):
        paired(photos)["bat/0.png"].load()


@pytest.mark.parametrize("mode", ARMS)
def test_a_folder_is_not_continued_with_partners_of_another_source(tmp_path: Path, mode: str) -> None:
    photos, out, spec = photo_folder(tmp_path / "in"), tmp_path / "out", job_spec(mode=mode)
    run(photos, out, spec=spec, limit=2)
    added = photos / "cat" / "9.png"
    added.write_bytes(picture(9))
    maker = Maker()
    with pytest.raises(SpecError, match=r"other partners.* Use another output folder") as refused:
        run(photos, out, maker, spec)
    assert (refused.value.exit_code, maker.seen) == (2, [])
    added.rename(photos / "bird" / "9.png")
    with pytest.raises(SpecError, match="other partners"):
        run(photos, out, maker, spec)
    (photos / "bird" / "9.png").unlink()
    assert run(photos, out, maker, spec).images == 4
    assert judge(out, requested(photos, spec)).clean


def test_a_folder_is_not_continued_with_partners_of_other_classes(tmp_path: Path) -> None:
    photos, out, spec = photo_folder(tmp_path / "in", ("a", "b", "c")), tmp_path / "out", job_spec(mode="cross-class")
    run(photos, out, spec=spec, limit=2)
    (tmp_path / "names.csv").write_text("a,a\nb,b\n")
    with pytest.raises(SpecError, match="other partners"):
        run(photos, out, spec=spec, classes=tmp_path / "names.csv")


def test_without_partners_a_folder_goes_on_with_more_photos(tmp_path: Path) -> None:
    photos, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    run(photos, out, limit=2)
    (photos / "cat" / "9.png").write_bytes(picture(9))
    assert run(photos, out).images == 5
    assert judge(out, requested(photos, job_spec())).clean


def test_who_lends_is_told_by_classes_and_keys_and_by_no_seed() -> None:
    listed: Listed = [("a.png", "bat"), ("b.png", "bat"), ("c.png", None)]
    more: Listed = [("d.png", "bat")]
    moved: Listed = [("a.png", None), *listed[1:]]
    assert len({sha256_of(one) for one in (listed, listed + more, listed[:2], moved)}) == 4
    assert sha256_of(reversed(listed)) == sha256_of(listed) == sha256_of(listed, seed=1)


def test_what_failed_for_want_of_a_partner_is_made_once_there_is_one(tmp_path: Path) -> None:
    photos, out, spec = photo_folder(tmp_path / "in", ("mug",), 1), tmp_path / "out", job_spec(mode="shuffled")
    assert run(photos, out, spec=spec).failed == 1
    (photos / "mug" / "1.png").write_bytes(picture(1))
    again = run(photos, out, spec=spec, retry_failed="NO_PARTNER")
    assert (again.images, again.failed, again.exit_code) == (2, 0, 0)
    assert judge(out, requested(photos, spec)).clean


def test_a_second_image_of_a_class_comes_too_late_for_a_folder_that_has_images(tmp_path: Path) -> None:
    photos, out, spec = photo_folder(tmp_path / "in"), tmp_path / "out", job_spec(mode="shuffled")
    (photos / "mug").mkdir()
    (photos / "mug" / "0.png").write_bytes(picture(99))
    assert run(photos, out, spec=spec).failed == 1
    (photos / "mug" / "1.png").write_bytes(picture(98))
    with pytest.raises(SpecError, match="other partners"):
        run(photos, out, spec=spec, retry_failed="NO_PARTNER")
    assert run(photos, tmp_path / "new", spec=spec).images == 8


def test_a_failure_is_tried_again_with_the_same_partner(tmp_path: Path) -> None:
    photos, out, spec = photo_folder(tmp_path / "in"), tmp_path / "out", job_spec(mode="shuffled")
    maker = Maker(spoil=lambda item: failing(item) if item.key == "cat/1.png" else None)
    run(photos, out, maker, spec)
    again = Maker()
    assert run(photos, out, again, spec, retry_failed=True).images == 1
    [spoiled] = [item for item in maker.seen if item.key == "cat/1.png"]
    assert again.seen == [spoiled]


def test_a_key_that_was_given_before_lends_nothing(tmp_path: Path) -> None:
    rows = [{"file_name": name, "label": "bat", "caption": name} for name in ("a.png", "b.png", "a.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = paired(tmp_path)
    assert lenders(items) == {"a.png": "b.png", "b.png": "a.png"}
    [copy] = items.keys() - {"a.png", "b.png"}
    with pytest.raises(ItemError, match="given before"):
        items[copy].load()


def test_samples_of_tars_lend_to_each_other(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("x.png", picture(1)), ("x.cls", b"bat"), ("n.txt", b"no class")])
    make_tar(tmp_path / "b.tar", [("y.txt", b"a club"), ("y.cls", b"bat")])
    items = paired(tmp_path)
    assert lenders(items) == {"a.tar/x": "b.tar/y", "b.tar/y": "a.tar/x"}
    assert (items["a.tar/x"].load().caption, items["b.tar/y"].load().image) == ("a club", picture(1))


def test_rings_are_made_only_when_something_is_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out, spec = photo_folder(tmp_path / "in"), tmp_path / "out", job_spec(mode="shuffled")
    run(photos, out, spec=spec)
    monkeypatch.setattr("captory_data.partners.Partners", never_asked)
    assert run(photos, out, spec=spec).skipped == 6
    with closing(open_source(photos)) as source:
        assert plan_job(source, spec, out) == Plan(items=6, published=6)
        assert plan_job(source, spec, tmp_path / "new") == Plan(items=6, to_make=6)


def test_a_stop_ends_the_making_of_rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out, spec = photo_folder(tmp_path / "in"), tmp_path / "out", job_spec(mode="shuffled")
    run(photos, out, spec=spec, limit=1)
    stop, maker, placed, point = asyncio.Event(), Maker(), [], Partners._point

    def stopping(partners: Partners, key: str) -> str:
        placed.append(key)
        stop.set()
        return point(partners, key)

    with monkeypatch.context() as patch:
        patch.setattr(Partners, "_point", stopping)
        summary = run(photos, out, maker, spec, stop=stop)
    assert (summary.interrupted, summary.exit_code, maker.calls) == (True, 130, 0)
    assert "cat/2.png" not in placed
    assert run(photos, out, spec=spec).images == 5
