"""The writer of Triton model folders: `config.pbtxt`, `1/model.onnx` and a manifest of checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from captory_engine.manifest import write_manifest

MAX_BATCH_SIZE = 64
_MESSAGES: Any = model_config_pb2  # built at run time, so no type checker sees its names


class Port(NamedTuple):
    """An input or output on the wire, without the batch axis.

    `dims` may not be empty for Triton; a graph's [B] is written as dims [1] with `reshape` ().
    """

    name: str
    data_type: str  # TYPE_FP32, TYPE_INT64, ...
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None


def write_model(
    folder: Path,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    max_batch_size: int = MAX_BATCH_SIZE,
    *,
    files: Mapping[str, bytes] | None = None,
) -> str:
    """Make a model, named as the folder, of the graph that lies in it already as 1/model.onnx; return its digest.

    `files` are further ones, to lie beside the configuration.
    """
    (folder / "config.pbtxt").write_text(config_text(folder.name, inputs, outputs, max_batch_size), encoding="utf-8")
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    return write_manifest(folder)


def config_text(name: str, inputs: Sequence[Port], outputs: Sequence[Port], max_batch_size: int) -> str:
    """Return a `config.pbtxt` for ONNX Runtime."""
    config = _MESSAGES.ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    for ports, field in ((inputs, config.input), (outputs, config.output)):
        for port in ports:
            tensor = field.add(name=port.name, data_type=_MESSAGES.DataType.Value(port.data_type), dims=port.dims)
            if port.reshape is not None:
                tensor.reshape.CopyFrom(_MESSAGES.ModelTensorReshape(shape=port.reshape))
    text: str = text_format.MessageToString(config)
    return text


def to_json(value: Any) -> bytes:
    """Return `value` as the JSON text of a file beside a model."""
    return (json.dumps(value, indent=2) + "\n").encode()
