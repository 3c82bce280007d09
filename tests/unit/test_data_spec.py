"""Parameters and identity."""

from __future__ import annotations

import hashlib

import pytest
from data_fakes import job_spec

from captory_data.errors import SpecError
from captory_data.identity import identify, image_indices, wanted_images
from captory_data.spec import JobSpec


def test_an_id_is_the_hash_of_the_settled_fields() -> None:
    text = (
        '{"guidance_interval":[0,1],"guidance_scale":3,"height":8,"mode":"cip","negative_prompt":"","prompt_index":0,'
        '"sample_index":2,"sampler":"ddim","seed":7,"source_key":"a/ä.png","steps":4,"width":8}'
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    wanted = identify(job_spec(), "a/ä.png", 0, 2)
    assert wanted.id == digest[:32]
    assert wanted.seed == int(digest[32:48], 16) >> 11
    assert (wanted.prompt_index, wanted.sample_index) == (0, 2)


def test_equal_numbers_give_equal_ids() -> None:
    whole = job_spec(guidance_scale=1, guidance_interval=None)
    decimal = job_spec(guidance_scale=1.0, guidance_interval=(0.0, 1.0))
    assert identify(whole, "k", 0, 0) == identify(decimal, "k", 0, 0)
    assert whole.difference(decimal) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"output_format": "parquet"},
        {"image_format": "webp"},
        {"determinism": "exact"},
        {"per_image": 9},
        {"family": "other"},
    ],
)
def test_what_is_not_identity_does_not_change_ids(changes: dict[str, object]) -> None:
    assert identify(job_spec(**changes), "k", 0, 0) == identify(job_spec(), "k", 0, 0)
    assert set(job_spec(**changes).difference(job_spec())) == set(changes)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        *((mode, (3, 0)) for mode in ("rewrite", "recap-mix", "face", "closed-loop")),
        *((mode, (0, 3)) for mode in ("cip", "basic", "shuffled", "cross-class")),
    ],
)
def test_indices_by_mode(mode: str, expected: tuple[int, int]) -> None:
    assert image_indices(mode, 3) == expected
    assert wanted_images(job_spec(mode=mode, per_image=4), "k")[3][1:3] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "poem"},
        {"steps": 0},
        {"width": -1},
        {"per_image": 0},
        {"per_image": 10**6},
        {"guidance_scale": float("nan")},
        {"guidance_interval": (0.0, float("inf"))},
        {"image_format": "jpeg"},
        {"output_format": "zip"},
        {"determinism": "perhaps"},
    ],
)
def test_wrong_values_are_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=next(iter(changes))) as caught:
        job_spec(**changes)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("interval", [None, (0.2, 0.8)])
def test_a_spec_survives_its_canonical_form(interval: tuple[float, float] | None) -> None:
    spec = job_spec(guidance_interval=interval, negative_prompt="größe", seed=2**53 - 1)
    assert JobSpec.from_canonical(spec.canonical()).difference(spec) == {}
