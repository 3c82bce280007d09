"""Ids and keys under random parameters."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from data_fakes import job_spec, picture, requested
from hypothesis import given, settings
from hypothesis import strategies as st

from captory_data.formats.imagefolder import folder_name
from captory_data.identity import identify, wanted_images
from captory_data.keys import KeyIndex, safe_key
from captory_data.outcomes import Finished
from captory_data.provenance import make_record
from captory_data.records import OPTIONAL_FIELDS, Record
from captory_data.source import SourceItem
from captory_data.sources.entry import Entry
from captory_data.spec import MODES

TEXT = st.text(max_size=20)
SPECS = st.builds(
    job_spec,
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**53 - 1),
    steps=st.integers(1, 100),
    guidance_scale=st.one_of(st.integers(0, 30), st.floats(0, 30)),
    guidance_interval=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    sampler=TEXT,
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    negative_prompt=TEXT,
    per_image=st.integers(1, 5),
)
IMAGES = st.tuples(SPECS, TEXT, st.integers(0, 3), st.integers(0, 3))
NAMES = st.text(st.characters(), max_size=8)


def identity_of(image: tuple[Any, str, int, int]) -> tuple[Any, ...]:
    spec, *rest = image
    values = spec.canonical()
    for name in ("per_image", "family", "image_format", "determinism", "output_format"):
        del values[name]
    return (repr(sorted(values.items())), *rest)


@given(st.lists(IMAGES, min_size=2, max_size=20))
def test_two_images_share_an_id_only_if_they_are_the_same(images: list[tuple[Any, str, int, int]]) -> None:
    ids = {identify(*image).id for image in images}
    assert len(ids) == len({identity_of(image) for image in images})


@given(IMAGES)
def test_ids_and_seeds_are_well_formed(image: tuple[Any, str, int, int]) -> None:
    wanted = identify(*image)
    assert len(wanted.id) == 32
    assert int(wanted.id, 16) >= 0
    assert 0 <= wanted.seed < 2**53


@given(SPECS, TEXT, st.integers(1, 4))
def test_asking_for_fewer_images_gives_the_same_first_ones(spec: Any, key: str, fewer: int) -> None:
    smaller = type(spec)(**asdict(spec) | {"per_image": min(fewer, spec.per_image)})
    assert wanted_images(spec, key)[: smaller.per_image] == wanted_images(smaller, key)


@given(st.lists(NAMES, unique=True, max_size=20))
def test_safe_keys_stay_apart_and_can_be_printed(names: list[str]) -> None:
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all("\n" not in key and "\x1b" not in key for key in keys)
    b"".join(key.encode() for key in keys)


@given(st.lists(st.text(min_size=1, max_size=8).map(safe_key), unique=True, max_size=20))
def test_class_folders_stay_apart(class_ids: list[str]) -> None:
    names = [folder_name(class_id) for class_id in class_ids]
    assert len(set(names)) == len(class_ids)
    assert all("/" not in name and "\x00" not in name and not name.startswith(".") for name in names)


@given(st.lists(st.tuples(NAMES.map(safe_key).filter(bool), TEXT), max_size=50))
def test_the_index_is_a_sorted_dict_of_first_values(rows: list[tuple[str, str]]) -> None:
    rows = [(key, safe_key(value)) for key, value in rows]
    index, model = KeyIndex(), dict[str, str]()
    for key, value in rows:
        assert index.add(key, value) == (key not in model)
        model.setdefault(key, value)
    assert list(index) == sorted(model.items())
    assert len(index) == len(model)
    index.close()


@given(IMAGES, TEXT, TEXT, st.dictionaries(TEXT, TEXT), st.none() | TEXT)
@settings(max_examples=50)
def test_records_survive_json(
    image: tuple[Any, str, int, int], caption: str, prompt: str, models: dict[str, str], class_id: str | None
) -> None:
    spec, key, *_ = image
    item = SourceItem(key, class_id, prompt, Path(), Entry())
    finished = Finished(
        key, "", b"", caption, prompt, models, "", 3, attributes=(prompt, caption), synthetic_captions=(caption,)
    )
    record = make_record(spec, item, identify(*image), finished)
    assert Record.loads(record.dumps()) == record


@given(IMAGES, st.sets(st.sampled_from(sorted(OPTIONAL_FIELDS))))
def test_records_of_before_a_field_was_added_are_still_read(
    image: tuple[Any, str, int, int], lacking: set[str]
) -> None:
    spec, key, *_ = image
    item = SourceItem(key, "bat", "bat", Path(), Entry())
    record = make_record(spec, item, identify(*image), Finished(key, "", b"", "", "a bat", {}, ""))
    values = {name: value for name, value in json.loads(record.dumps()).items() if name not in lacking}
    assert Record.loads(json.dumps(values)) == record
    with pytest.raises(ValueError, match="not a record"):
        Record.loads(json.dumps({name: value for name, value in values.items() if name != "prompt"}))


@pytest.mark.parametrize("seed", range(3))
def test_ids_do_not_depend_on_place_or_order(tmp_path: Path, seed: int) -> None:
    found = []
    for place in ("here", "there/deeper"):
        names = [f"{k}.png" for k in range(5)]
        (tmp_path / place).mkdir(parents=True)
        for name in names if place == "here" else reversed(names):
            (tmp_path / place / name).write_bytes(picture(seed))
        found.append(requested(tmp_path / place, job_spec(seed=seed)))
    assert found[0] == found[1]
    assert len(found[0]) == 5
