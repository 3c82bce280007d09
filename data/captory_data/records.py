"""The record that travels with every finished image: where it came from, and all that it takes to make it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

DIGITAL_SOURCE_TYPE = "trainedAlgorithmicMedia"  # IPTC's word for an image made by a model


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image's provenance. Field names are the dataset's; sizes are pixels, `models` maps names to sha256.

    `writer` says who wrote the prompt: "template", "model", "fallback" or "client"; empty where it is not known.
    """

    id: str
    source: str
    class_id: str | None
    class_name: str
    caption: str
    prompt: str
    negative_prompt: str
    mode: str
    prompt_index: int
    sample_index: int
    seed: int
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    sampler: str
    width: int
    height: int
    determinism: str
    family: str
    models: dict[str, str]
    token_count: int
    token_policy: str
    backend: str
    pixel_sha256: str
    digital_source_type: str = DIGITAL_SOURCE_TYPE
    writer: str = ""

    def dumps(self) -> str:
        """As one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def loads(cls, text: str | bytes) -> Record:
        """From JSON.

        Raises:
            ValueError: it is not a record.
        """
        values: Any = json.loads(text)
        if not isinstance(values, dict) or values.keys() | OPTIONAL_FIELDS != RECORD_FIELDS:
            raise ValueError("the fields are not a record's")
        start, stop = values["guidance_interval"]
        return cls(**{**values, "guidance_interval": (float(start), float(stop))})


RECORD_FIELDS = frozenset(field.name for field in fields(Record))
OPTIONAL_FIELDS = frozenset(["writer"])  # which the first records lack
