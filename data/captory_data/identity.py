"""An image's id and seed come from what it is, never from where, when, or beside what it is made (design.md §9)."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from captory_data.spec import JobSpec

ID_HEX_DIGITS = 32
SEED_BITS = 53
IDENTITY_FIELDS = (
    "mode",
    "seed",
    "steps",
    "guidance_scale",
    "guidance_interval",
    "sampler",
    "width",
    "height",
    "negative_prompt",
)
ONE_PROMPT_AN_IMAGE = ("rewrite", "recap-mix", "face", "closed-loop")


class Wanted(NamedTuple):
    """One image that a job asks of a source item."""

    id: str
    prompt_index: int
    sample_index: int
    seed: int


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def identify(spec: JobSpec, source_key: str, prompt_index: int, sample_index: int) -> Wanted:
    """The id (128 bits of a sha256) and seed (53 further bits of it) of one image."""
    values = spec.canonical()
    identity = {name: values[name] for name in IDENTITY_FIELDS}
    identity |= {"source_key": source_key, "prompt_index": prompt_index, "sample_index": sample_index}
    digest = hashlib.sha256(canonical_json(identity)).digest()
    seed = int.from_bytes(digest[16:24], "big") >> (64 - SEED_BITS)
    return Wanted(digest.hex()[:ID_HEX_DIGITS], prompt_index, sample_index, seed)


def image_indices(mode: str, k: int) -> tuple[int, int]:
    """Prompt and sample index of an item's image k: some modes write a prompt for each image, others one for all."""
    return (k, 0) if mode in ONE_PROMPT_AN_IMAGE else (0, k)


def wanted_images(spec: JobSpec, source_key: str) -> tuple[Wanted, ...]:
    """Every image that the job asks of one source item."""
    return tuple(identify(spec, source_key, *image_indices(spec.mode, k)) for k in range(spec.per_image))
