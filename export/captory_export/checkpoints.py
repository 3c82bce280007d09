"""Where a checkpoint comes from, and what of it may be read: tensors in safetensors, settings in JSON, nothing else.

A reference is `org/name@revision`, fetched from the Hugging Face hub (HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are
honoured), or the path of a folder. What is found is looked through before any of it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captory_engine.errors import BadModel

READ = ("*.json", "*.txt", "*.safetensors", "LICENSE*", "README.md")
VARIANTS = ("*.fp16.safetensors", "*.non_ema.safetensors", "*.bf16.safetensors")
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".h5")
MAX_JSON_BYTES = 64 << 20
SETTINGS = "captory.json"
_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]{1,128}))?")
_LICENCE = re.compile(r"^license: *['\"]?([\w.+-]+)", re.MULTILINE)


class Checkpoint(NamedTuple):
    """A folder whose files have been looked through.

    `revision` is the hub's commit, or for a folder the digest of its files; `licence` is empty where none is told.
    """

    path: Path
    name: str
    revision: str
    licence: str

    def settings(self, file: str) -> dict[str, Any]:
        """The JSON object in a file of the folder. Raises `BadModel`."""
        return read_json(self.path / file)

    def own_settings(self) -> dict[str, Any]:
        """What a checkpoint that was made for Captory says of itself, which would be a guess; nothing of others."""
        return self.settings(SETTINGS) if (self.path / SETTINGS).is_file() else {}


def find(reference: str) -> Checkpoint:
    """A checkpoint by its reference. Raises `BadModel` with what to do for whatever cannot or must not be read."""
    folder = Path(reference)
    if reference and folder.is_dir():
        inspect(folder)
        _refuse_links(folder)
        return Checkpoint(folder, folder.resolve().name, _digest(folder), _licence(folder))
    match = _HUB.fullmatch(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise BadModel("REFERENCE", f"{reference!r} is neither a folder nor org/name@revision.")
    return _from_hub(match["repo"], match["revision"] or "main")


def _from_hub(repo: str, revision: str) -> Checkpoint:
    from huggingface_hub import errors, snapshot_download

    refusals: list[tuple[type[Exception], str, str]] = [
        (errors.GatedRepoError, "GATED", "is gated: accept its terms on the hub and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "REVISION_MISSING", f"has no revision {revision!r}"),
        (errors.RepositoryNotFoundError, "CHECKPOINT_MISSING", "is not on the hub, or is private and HF_TOKEN not set"),
        (errors.LocalEntryNotFoundError, "CHECKPOINT_MISSING", "is not in the local cache, and the hub is not reached"),
        (errors.HfHubHTTPError, "HUB_FAILED", "could not be fetched from the hub"),
        (OSError, "HUB_FAILED", "could not be fetched: the hub is not reached, or there is no room"),
    ]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=READ, ignore_patterns=VARIANTS))
    except Exception as error:
        for kind, reason, words in refusals:
            if isinstance(error, kind):
                raise BadModel(reason, f"The checkpoint {repo} {words}.") from error
        raise
    inspect(folder)
    return Checkpoint(folder, repo, folder.name, _licence(folder))  # a snapshot's folder is named by its commit


def inspect(folder: Path) -> None:
    """Raise `BadModel` for code, for weights in pickles alone, and for safetensors that are not whole."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    code = [path for path in files if path.suffix == ".py"]
    code += [path for path in files if path.name == "config.json" and "auto_map" in read_json(path)]
    if code:
        words = f"{_named(folder, code)} would run code of the checkpoint's own; Captory runs none"
        raise BadModel("REMOTE_CODE", f"{words}. Use an architecture that transformers or diffusers has.")
    tensors = {path.parent for path in files if path.suffix == ".safetensors"}
    pickled = [path for path in files if path.suffix in PICKLED and path.parent not in tensors]
    if pickled:
        raise BadModel(
            "PICKLE", f"{_named(folder, pickled)}: weights in pickles are not read. Save them with save_pretrained()."
        )
    for path in files:
        if path.name.endswith(".safetensors.index.json"):
            _check_index(path)
        elif path.suffix == ".safetensors":
            check_tensors(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `BadModel`."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("too large")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadModel("CHECKPOINT_INCOMPLETE", f"The checkpoint has no {path.name} in {str(path.parent)!r}.") from None
    except (ValueError, RecursionError) as error:
        raise BadModel("CHECKPOINT_CORRUPT", f"{str(path)!r} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise BadModel("CHECKPOINT_CORRUPT", f"{str(path)!r} is no JSON object.")
    return value


def num_weight_bytes(folder: Path) -> int:
    """Bytes of all tensors of a checkpoint."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _check_index(path: Path) -> None:
    """Every shard that the index names lies beside it."""
    shards = read_json(path).get("weight_map", {})
    names = set(shards.values()) if isinstance(shards, dict) else {None}
    wrong = [str(name) for name in names if not isinstance(name, str) or Path(name).name != name]
    missing = [name for name in names if name not in wrong and not (path.parent / str(name)).is_file()]
    if wrong or missing:
        listed = ", ".join(sorted({*wrong, *map(str, missing)}))
        raise BadModel("CHECKPOINT_INCOMPLETE", f"{str(path)!r} names files that are not beside it: {listed}.")


def check_tensors(path: Path) -> None:
    """Raise `BadModel` for a safetensors file that is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise BadModel("CHECKPOINT_CORRUPT", f"{str(path)!r} is no whole safetensors file; fetch it again.") from error


def _refuse_links(folder: Path) -> None:
    """A folder's own files only: what a link leads to is not the checkpoint."""
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise BadModel("LINKS", f"{_named(folder, links)}: links are not followed; copy the files there.")


def _digest(folder: Path) -> str:
    """Of names and contents of all files that are read."""
    total = hashlib.sha256()
    for path in sorted(_read_files(folder)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{content}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def _read_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and any(path.match(pattern) for pattern in READ):
            yield path


def _licence(folder: Path) -> str:
    card = folder / "README.md"
    found = _LICENCE.search(card.read_text(errors="replace")[:4096]) if card.is_file() else None
    return found[1] if found else ""


def _named(folder: Path, paths: Iterable[Path]) -> str:
    return ", ".join(str(path.relative_to(folder)) for path in paths)
