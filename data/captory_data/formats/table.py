"""The columns of Parquet files, with the features that Hugging Face `datasets` reads from the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from captory_data.formats.base import NO_CLASS
from captory_data.records import Record
from captory_data.rows import ClassRow

TEXTS = pa.list_(pa.string())
RECORD_COLUMNS = {
    "id": pa.string(),
    "source": pa.string(),
    "class_id": pa.string(),
    "class_name": pa.string(),
    "caption": pa.string(),
    "caption_source": pa.string(),
    "attributes": TEXTS,
    "synthetic_captions": TEXTS,
    "prompt": pa.string(),
    "writer": pa.string(),
    "negative_prompt": pa.string(),
    "mode": pa.string(),
    "mode_sha256": pa.string(),
    "prompt_index": pa.int64(),
    "sample_index": pa.int64(),
    "seed": pa.int64(),
    "steps": pa.int64(),
    "guidance_scale": pa.float64(),
    "sampler": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "determinism": pa.string(),
    "family": pa.string(),
    "pixel_sha256": pa.string(),
    "digital_source_type": pa.string(),
}
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURE_TYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}


def schema_for(classes: Sequence[ClassRow], first: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns `first`, then label (in a job with classes), text, the record's own, and the record as JSON."""
    columns = dict(first)
    if classes:
        columns["label"] = pa.int64()
    columns |= {"text": pa.string(), **RECORD_COLUMNS, "record": pa.string()}
    features = {name: _feature(name, kind, classes) for name, kind in columns.items()}
    hint = json.dumps({"info": {"features": features}}, sort_keys=True)
    return pa.schema(list(columns.items()), metadata={"huggingface": hint})


def _feature(name: str, kind: pa.DataType, classes: Sequence[ClassRow]) -> Any:
    if kind == IMAGE_TYPE:
        return {"_type": "Image"}
    if name == "label":
        return {"_type": "ClassLabel", "names": [row.id for row in classes]}
    if kind == TEXTS:
        return [{"_type": "Value", "dtype": "string"}]
    return {"_type": "Value", "dtype": FEATURE_TYPES[kind]}


def columns_of(record: Record, position: int) -> dict[str, Any]:
    """One row, but for what a format puts first."""
    row = {name: getattr(record, name) for name in RECORD_COLUMNS}
    label = None if position == NO_CLASS else position
    return {**row, "label": label, "text": record.prompt, "record": record.dumps()}
