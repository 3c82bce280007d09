"""Where TensorRT's plans lie on this machine, and what each of them was built for.

A plan is code for one GPU and one TensorRT, so only what was built here is loaded: the record beside it says for what,
and holds its digest. Neither torch nor TensorRT is needed to look.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from captory_engine.errors import BadModel, InvalidInput
from captory_engine.repository import ModelFolder

PLAN = "model.plan"
RECORD = "engine.json"
TIMING_CACHE = "timing.cache"
MAX_RECORD_BYTES = 1 << 20
BUILD = "Build it on this machine: captory export --tensorrt, or python -m captory_export.tensorrt for what is exported"

Shape = tuple[int, ...]
Shapes = tuple[list[int], list[int], list[int]]  # of one input: least, best and largest


class Machine(NamedTuple):
    """What a plan is bound to besides its graph; `compute_capability` is for instance 9.0."""

    gpu: str
    compute_capability: str
    tensorrt: str


@dataclass(frozen=True, slots=True)
class Key:
    """What an engine is built from and for. `digest` is the model's; `precision` is one of `TENSORRT_PRECISIONS`."""

    model: str
    digest: str
    gpu: str
    compute_capability: str
    tensorrt: str
    precision: str

    @staticmethod
    def of(model: ModelFolder, machine: Machine, precision: str) -> Key:
        """The key of a model's engine on a machine."""
        return Key(model.name, model.digest, *machine, precision)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a plan: its key and digest, and the shapes of each profile's inputs."""

    key: Key
    sha256: str
    num_bytes: int
    build_s: float
    profiles: list[dict[str, Shapes]]

    @property
    def max_rows(self) -> int:
        """Rows that every profile takes."""
        return min(largest[0] for profile in self.profiles for _, _, largest in profile.values())

    def profile_of(self, shapes: Mapping[str, Shape]) -> int:
        """The number of the first profile that takes the inputs' shapes. Raises `InvalidInput` when none does."""
        for number, profile in enumerate(self.profiles):
            if all(_within(shape, profile[name]) for name, shape in shapes.items()):
                return number
        words = f"{self.key.model}: the engine was not built for the shapes {dict(shapes)}."
        raise InvalidInput("WRONG_TENSOR", words)


_RECORDS = TypeAdapter(Record)


def engines_root(root: Path | None = None) -> Path:
    """Where this user's engines lie, unless `root` says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root or cache / "captory" / "engines"


def machine_folder(root: Path, key: Key) -> Path:
    """Where all that belongs to the key's GPU and TensorRT lies."""
    return root / _slug(f"{key.gpu}-sm{key.compute_capability}") / _slug(f"tensorrt-{key.tensorrt}")


def engine_folder(root: Path, key: Key) -> Path:
    """Where the engine of a key lies."""
    return machine_folder(root, key) / key.precision / f"{key.model}-{key.digest[:12]}"


def load_plan(root: Path, key: Key) -> tuple[bytes, Record]:
    """The plan of a key, and its record. Raises `BadModel` that says what does not match and what to do."""
    folder = engine_folder(root, key)
    record = _read(folder / RECORD)
    if record is None:
        raise BadModel(
            "ENGINE_MISSING", f"Model {key.model!r} has no engine for this machine{_others(root, key)}. {BUILD}."
        )
    wrong = differences(record.key, key)
    if wrong:
        raise BadModel("ENGINE_MISMATCH", f"The engine in {str(folder)!r} is for {'; '.join(wrong)}. {BUILD}.")
    try:
        plan = (folder / PLAN).read_bytes()
    except FileNotFoundError:
        plan = b""
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise BadModel("ENGINE_CHANGED", f"The {PLAN} in {str(folder)!r} is not what its {RECORD} says. {BUILD}.")
    return plan, record


def save_plan(root: Path, key: Key, plan: bytes, profiles: list[dict[str, Shapes]], *, build_s: float) -> Record:
    """Keep a plan and a record of it, in place of the key's older one. Raises `OSError`."""
    record = Record(key, hashlib.sha256(plan).hexdigest(), len(plan), build_s, profiles)
    folder = engine_folder(root, key)
    with replacing(folder / PLAN) as draft:
        draft.write_bytes(plan)
    with replacing(folder / RECORD) as draft:
        draft.write_bytes(_RECORDS.dump_json(record, indent=1))
    return record


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its place when the block ends; when it raises, nothing is left of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def differences(found: Key, wanted: Key) -> list[str]:
    """The fields in which an engine is not the one that is wanted, in words."""
    pairs = [(field.name, getattr(found, field.name), getattr(wanted, field.name)) for field in fields(Key)]
    return [f"{name} {had!r}, not {want!r}" for name, had, want in pairs if had != want]


def _others(root: Path, key: Key) -> str:
    """What the engine of this model that comes nearest was built for."""
    records = (_read(path) for path in sorted(root.glob(f"*/*/*/{key.model}-*/{RECORD}")))
    wrong = [differences(record.key, key) for record in records if record is not None]
    nearest = min(wrong, key=len, default=[])
    return f"; there is one for {'; '.join(nearest)}" if nearest else ""


def _read(path: Path) -> Record | None:
    """A record; None where there is none, or none that `save_plan` could have written."""
    try:
        return _RECORDS.validate_json(path.read_bytes()) if path.stat().st_size <= MAX_RECORD_BYTES else None
    except (FileNotFoundError, ValidationError):
        return None


def _within(shape: Shape, shapes: Shapes) -> bool:
    least, _, largest = shapes
    return all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.")
