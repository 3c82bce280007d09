"""The manifest of a model's folder: one sha256 a file, in the format of `sha256sum`, and one digest over all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from captory_engine.errors import BadModel

MANIFEST = "manifest.sha256"
MAX_FILES = 1000
MAX_MANIFEST_BYTES = 1 << 20
# Code, and formats that run code when they are read. Nothing here ever opens one; a model has no need of them.
REFUSED_SUFFIXES = frozenset(
    {
        *(".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe"),
        *(".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".marshal"),
    }
)
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below `folder`, relative and sorted.

    Raises `BadModel` for a link, anything that is no regular file, code, pickles, and too many files.
    """
    files: list[str] = []
    for path in _walk(folder):
        if path.suffix.lower() in REFUSED_SUFFIXES:
            raise _unsafe(folder, path, "is of a kind that can carry code")
        files.append(path.relative_to(folder).as_posix())
        if len(files) > MAX_FILES:
            raise BadModel("MODEL_UNSAFE", f"Model {folder.name!r} holds more than {MAX_FILES} files.")
    return sorted(files)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of `folder` except the manifest, by relative path."""
    return {name: _hash_file(folder / name) for name in list_files(folder) if name != MANIFEST}


def write_manifest(folder: Path) -> str:
    """Write the manifest of `folder` as it is now and return its digest."""
    hashes = hash_files(folder)
    text = "".join(f"{line}\n" for line in _lines(hashes))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return digest_of(hashes)


def read_manifest(folder: Path) -> dict[str, str]:
    """Return what the manifest of `folder` promises, by relative path."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise BadModel("MANIFEST_MISSING", f"Model {folder.name!r} has no {MANIFEST}; `captory models add` writes one.")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BadModel("MANIFEST_INVALID", f"The {MANIFEST} of model {folder.name!r} is too large.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadModel("MANIFEST_INVALID", f"The {MANIFEST} of model {folder.name!r} is not text.") from None
    return dict(_parse_line(folder, number, line) for number, line in enumerate(lines, start=1))


def digest_of(hashes: Mapping[str, str]) -> str:
    """Return the one digest of a model: sha256 over its sorted manifest lines, in hex."""
    return hashlib.sha256("".join(f"{line}\n" for line in _lines(hashes)).encode()).hexdigest()


def verify_manifest(folder: Path) -> str:
    """Compare every file of `folder` with its manifest and return the digest.

    Raises `BadModel` that names each missing, extra and changed file.
    """
    promised, found = read_manifest(folder), hash_files(folder)
    problems = list(_compare(promised, found))
    if problems:
        words = "; ".join(problems)
        raise BadModel("MODEL_FILES", f"Model {folder.name!r} is not what its {MANIFEST} says: {words}.")
    return digest_of(promised)


def _compare(promised: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(promised.keys() | found.keys()):
        if name not in found:
            yield f"missing {name}"
        elif name not in promised:
            yield f"extra {name}"
        elif promised[name] != found[name]:
            yield f"changed {name}"


def _lines(hashes: Mapping[str, str]) -> list[str]:
    return sorted(f"{digest}  {name}" for name, digest in hashes.items())


def _parse_line(folder: Path, number: int, line: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadModel("MANIFEST_INVALID", f"Line {number} of the {MANIFEST} of model {folder.name!r} is malformed.")
    return match[2], match[1]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every regular file, without ever following a link."""
    if folder.is_symlink() or not folder.is_dir():
        raise BadModel("MODEL_MISSING", f"There is no model folder {folder.name!r}.")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                raise _unsafe(folder, path, "is a link")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path)
            elif entry.is_file(follow_symlinks=False):
                yield path
            else:
                raise _unsafe(folder, path, "is not a regular file")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unsafe(folder: Path, path: Path, words: str) -> BadModel:
    return BadModel("MODEL_UNSAFE", f"Model folder {folder.name!r}: {path.name!r} {words}.")
