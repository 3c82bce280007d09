"""What the engine must know of a checkpoint, held against the engine's own classes before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from captory_engine.errors import BadModel
from captory_engine.family import explain

Kind = TypeVar("Kind", bound=BaseModel)


def checked(kind: type[Kind], name: str, fields: Mapping[str, Any]) -> Kind:
    """The fields of `name` as the engine takes them. Raises `BadModel` that names each which it would not."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise BadModel("UNSUPPORTED", f"{name} is nothing that the engine can serve: {explain(error)}.") from None
