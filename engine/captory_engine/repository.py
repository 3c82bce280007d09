"""The model repository: one folder a model, in Triton's layout, opened only when its manifest holds."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from captory_engine import manifest
from captory_engine.errors import BadModel
from captory_engine.sessions.base import TensorSpec

CONFIG = "config.pbtxt"
DEFAULT_MODEL_FILE = "model.onnx"
MAX_CONFIG_BYTES = 1 << 20
_MESSAGES: Any = model_config_pb2  # built at run time, so no type checker sees its names
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_DTYPES: dict[str, Any] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model as its folder declares it. Shapes are those of the graph (`reshape` applied), without batch."""

    name: str
    path: Path
    config: Any  # inference.ModelConfig, as tritonclient ships it
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    digest: str

    @property
    def model_path(self) -> Path:
        """The file of the graph."""
        return self.path / str(self.version) / (self.config.default_model_filename or DEFAULT_MODEL_FILE)


def default_repository() -> Path:
    """Return the repository that ships with the wheel, or in a checkout the one at its root."""
    packaged = Path(__file__).parent / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_repository"


def list_models(root: Path) -> list[str]:
    """Return the names of the models of a repository, sorted, whether or not they are sound."""
    if not root.is_dir():
        raise BadModel("REPOSITORY_MISSING", f"There is no model repository at {str(root)!r}.")
    return sorted(path.name for path in root.iterdir() if _NAME.fullmatch(path.name) and (path / CONFIG).is_file())


def verify_model(folder: Path) -> str:
    """Check every file of a model's folder against its manifest and return the model's digest.

    Raises `BadModel` that names each missing, extra and changed file, and for links, code and pickles.
    """
    return manifest.verify_manifest(folder)


def open_model(root: Path, name: str) -> ModelFolder:
    """Verify the model `name` of the repository `root` and read its configuration."""
    folder = model_folder(root, name)
    if not folder.is_dir():
        raise BadModel("MODEL_MISSING", f"There is no model {name!r} in {str(root)!r}.")
    return _read_model(folder, name, verify_model(folder))


def add_model(root: Path, source: Path) -> ModelFolder:
    """Copy a model's folder into the repository `root` under its own name, with a manifest; all of it or nothing.

    A source that has a manifest must hold to it. Raises `BadModel` when the folder is no sound model, holds links,
    code or pickles, or the name is taken.
    """
    source = source.absolute()
    target = model_folder(root, source.name)
    if target.exists() or target.is_symlink():
        raise BadModel("MODEL_EXISTS", f"There already is a model {source.name!r}; remove it first.")
    _check_source(source)
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".adding-", dir=root))
    try:
        _copy_files(source, staging)
        _read_model(staging, source.name, manifest.write_manifest(staging))
        staging.chmod(0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_model(root, source.name)


def remove_model(root: Path, name: str) -> None:
    """Remove the model `name`: it disappears from the repository at once, then its files go."""
    folder = model_folder(root, name)
    if folder.is_symlink() or not (folder / CONFIG).is_file():
        raise BadModel("MODEL_MISSING", f"There is no model {name!r} in {str(root)!r}.")
    graveyard = Path(tempfile.mkdtemp(prefix=".removing-", dir=root))
    folder.rename(graveyard / name)
    shutil.rmtree(graveyard)


def model_folder(root: Path, name: str) -> Path:
    """Return where the model `name` lies; names are ids, never paths."""
    if not _NAME.fullmatch(name):
        raise BadModel("MODEL_NAME", f"{name!r} is no model name: letters, digits, `_` and `-`, at most 64.")
    return root / name


def _read_config(path: Path, name: str) -> Any:
    """Parse a `config.pbtxt` into tritonclient's `ModelConfig` message."""
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise BadModel("MODEL_CONFIG", f"Model {name!r} has no {CONFIG}, or one above {MAX_CONFIG_BYTES} bytes.")
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), _MESSAGES.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BadModel("MODEL_CONFIG", f"The {CONFIG} of model {name!r} cannot be read: {error}") from None


def _read_model(folder: Path, name: str, digest: str) -> ModelFolder:
    config = _read_config(folder / CONFIG, name)
    _check_config(config, name)
    model = ModelFolder(
        name=name,
        path=folder,
        config=config,
        version=_version(folder, config, name),
        inputs=tuple(_spec(tensor, name) for tensor in config.input),
        outputs=tuple(_spec(tensor, name) for tensor in config.output),
        max_batch=config.max_batch_size,
        digest=digest,
    )
    if not model.model_path.is_file():
        raise _bad_config(name, f"its version {model.version} has no {model.model_path.name}")
    return model


def _check_config(config: Any, name: str) -> None:
    if config.name not in ("", name):
        raise _bad_config(name, f"it calls itself {config.name!r}")
    if config.max_batch_size < 1:
        raise _bad_config(name, "max_batch_size must be at least 1")
    if not config.input or not config.output:
        raise _bad_config(name, "it declares no inputs or no outputs")
    if config.default_model_filename and not _FILE_NAME.fullmatch(config.default_model_filename):
        raise _bad_config(name, "default_model_filename must be a plain file name")


def _version(folder: Path, config: Any, name: str) -> int:
    """The highest version that is there and that the version policy allows."""
    versions = [int(path.name) for path in folder.iterdir() if re.fullmatch(r"[1-9][0-9]{0,9}", path.name)]
    if config.version_policy.HasField("specific"):
        versions = [version for version in versions if version in config.version_policy.specific.versions]
    if not versions:
        raise _bad_config(name, "it has no numbered version folder")
    return max(versions)


def _spec(tensor: Any, model: str) -> TensorSpec:
    kind = _MESSAGES.DataType.Name(tensor.data_type)
    if kind not in _DTYPES:
        raise _bad_config(model, f"tensor {tensor.name!r} is of type {kind}")
    shape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)
    if any(size < -1 or size == 0 for size in shape):
        raise _bad_config(model, f"tensor {tensor.name!r} has the shape {list(shape)}")
    return TensorSpec(tensor.name, np.dtype(_DTYPES[kind]), shape)


def _check_source(source: Path) -> None:
    files = manifest.list_files(source)
    if manifest.MANIFEST in files:
        manifest.verify_manifest(source)
    shared = [name for name in files if (source / name).stat().st_nlink > 1]
    if shared:
        raise BadModel("MODEL_UNSAFE", f"Model folder {source.name!r}: {shared[0]!r} has more than one hard link.")


def _copy_files(source: Path, target: Path) -> None:
    for name in manifest.list_files(source):
        if name != manifest.MANIFEST:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name, follow_symlinks=False)
            os.chmod(target / name, 0o644)


def _bad_config(model: str, words: str) -> BadModel:
    return BadModel("MODEL_CONFIG", f"The configuration of model {model!r} does not hold: {words}.")
