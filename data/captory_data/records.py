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
    `caption_source` is the key of the source whose caption it is, in the control arms where that is another's.
    `mode_sha256` is that of the mode's instruction file. `synthetic_captions` are those of a closed loop's drafts, in
    order: the prompt is made of the last, `caption` is the real image's.
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
    caption_source: str = ""
    mode_sha256: str = ""
    attributes: tuple[str, ...] = ()
    synthetic_captions: tuple[str, ...] = ()

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
        listed = {name: tuple(map(str, values.get(name, ()))) for name in ("attributes", "synthetic_captions")}
        return cls(**{**values, **listed, "guidance_interval": (float(start), float(stop))})


RECORD_FIELDS = frozenset(field.name for field in fields(Record))
# Which earlier records lack.
OPTIONAL_FIELDS = frozenset(["writer", "caption_source", "mode_sha256", "attributes", "synthetic_captions"])
