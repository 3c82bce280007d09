"""The same names on the wire and in the engine: two tables for each enumeration."""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

from captory_engine.items import Determinism, ImageFormat, Mode, Stage, WorkClass
from captory_proto.v1 import captory_pb2 as pb
from captory_server.fields import refuse

Name = TypeVar("Name", bound=StrEnum)
Number = TypeVar("Number", bound=int)


class Names(Generic[Name, Number]):
    """One enumeration: `MODE_RECAP_SHORT` on the wire is `Mode.RECAP_SHORT` in the engine."""

    def __init__(self, prefix: str, names: type[Name], values: dict[str, Number]) -> None:
        self._to_wire = {name: values[f"{prefix}_{name.name}"] for name in names}
        self._from_wire: dict[int, Name] = {value: name for name, value in self._to_wire.items()}

    def read(self, field: str, value: int, default: Name) -> Name:
        """The engine's name; 0 is the default, a number that nobody knows is refused."""
        if value != 0 and value not in self._from_wire:
            raise refuse(field, f"has no value {value}")
        return self._from_wire.get(value, default)

    def write(self, name: Name) -> Number:
        """The wire's number."""
        return self._to_wire[name]


MODES = Names("MODE", Mode, dict(pb.Mode.items()))
STAGES = Names("STAGE", Stage, dict(pb.Stage.items()))
DETERMINISMS = Names("DETERMINISM", Determinism, dict(pb.Determinism.items()))
IMAGE_FORMATS = Names("IMAGE_FORMAT", ImageFormat, dict(pb.ImageFormat.items()))
WORK_CLASSES = Names("WORK_CLASS", WorkClass, dict(pb.WorkClass.items()))
