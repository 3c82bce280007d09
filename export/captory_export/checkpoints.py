"""Where a checkpoint comes from, and what of it may be read: tensors in safetensors, settings in JSON, nothing else.

A reference is `org/name@revision`, fetched from the Hugging Face hub (HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are
honoured), or the path of a folder. What is found is looked through before any of it is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from captory_engine.errors import BadModel

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")  # a pipeline's, with weights
STEMS = ("model", "diffusion_pytorch_model")  # what save_pretrained() calls weights; further words tell a variant
WEIGHTS = tuple(f"{stem}{end}" for stem in STEMS for end in (".safetensors", "-*-of-*.safetensors"))
READ = (
    *("*.json", "*.txt", "*.jinja", "LICENSE*", "README.md"),
    *(f"{folder}{name}" for folder in ("", *(f"{part}/" for part in PARTS)) for name in WEIGHTS),
)
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".h5")
MAX_JSON_BYTES = 64 << 20
MAX_CARD_CHARS = 1 << 16  # of a README, in which its front matter ends
MAX_LICENCE_BYTES = 1 << 20
SETTINGS = "captory.json"
INDEX = "model_index.json"  # of a pipeline
MAX_LICENCES = 16
_TEXT = re.compile(r"LICENSE[\w-]{0,60}(\.txt|\.md)?")
_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]{1,128}))?")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^(license|license_name): *['\"]?(.*?)['\"]? *$", re.MULTILINE)


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

    def licences(self) -> dict[str, bytes]:
        """The texts of its licence, by file name, a few at most. Raises `BadModel` for one that is too large."""
        files = [path for path in sorted(self.path.glob("LICENSE*")) if _TEXT.fullmatch(path.name) and path.is_file()]
        for path in files[:MAX_LICENCES]:
            if path.stat().st_size > MAX_LICENCE_BYTES:
                words = f"{path.name} of {self.name} is larger than {MAX_LICENCE_BYTES} bytes"
                raise BadModel("LICENCE", f"{words}, which no licence is; replace or remove it.")
        return {path.name: path.read_bytes() for path in files[:MAX_LICENCES]}


def find(reference: str) -> Checkpoint:
    """A checkpoint by its reference. Raises `BadModel` with what to do for whatever cannot or must not be read."""
    folder = Path(reference)
    if reference and folder.is_dir():
        _refuse_links(folder)
        inspect(folder)
        return Checkpoint(folder, folder.resolve().name, _digest(folder), _licence(folder))
    match = _HUB.fullmatch(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise BadModel("REFERENCE", f"{reference!r} is neither a folder nor org/name@revision.")
    return _from_hub(match["repo"], match["revision"] or "main")


def _from_hub(repo: str, revision: str) -> Checkpoint:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(READ)))
    except (OSError, RuntimeError, ValueError) as error:  # of the hub's errors and its transports' each is one of these
        raise _refusal(repo, revision, error) from error
    inspect(folder)
    return Checkpoint(folder, repo, folder.name, _licence(folder))  # a snapshot's folder is named by its commit


def _refusal(repo: str, revision: str, error: Exception) -> BadModel:
    """Why the hub did not give a checkpoint, and what to do; the first that fits, since some are kinds of others."""
    from huggingface_hub import errors

    said = " ".join(str(error).split())[:200] or type(error).__name__
    known: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.HFValidationError, "REFERENCE", f"is no name that the hub allows: {said}"),
        (errors.GatedRepoError, "GATED", "is gated: accept its terms on the hub, and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "REVISION_MISSING", f"has no revision {revision!r}: name one that its page has"),
        (
            errors.RepositoryNotFoundError,
            "CHECKPOINT_MISSING",
            "is not on the hub, or is private: check its name, and set HF_TOKEN",
        ),
        (
            errors.LocalEntryNotFoundError,
            "CHECKPOINT_MISSING",
            "is no folder here and not in the local cache, and the hub is not reached: "
            "check the path, the connection and HF_HUB_OFFLINE",
        ),
    )
    for kind, reason, words in known:
        if isinstance(error, kind):
            return BadModel(reason, f"The checkpoint {repo} {words}.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return BadModel("DISK_FULL", f"There is no room for the checkpoint {repo}: free some, or set HF_HOME.")
    return BadModel("HUB_FAILED", f"The checkpoint {repo} could not be fetched; try again. The hub said: {said}")


def inspect(folder: Path) -> None:
    """Raise `BadModel` for code, for an adapter alone, and for weights that are missing, pickled or not whole."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    code = [path for path in files if path.suffix == ".py"]
    code += [path for path in files if path.name == "config.json" and "auto_map" in read_json(path)]
    if code:
        words = f"{_named(folder, code)} would run code of the checkpoint's own; Captory runs none"
        raise BadModel("REMOTE_CODE", f"{words}. Use an architecture that transformers or diffusers has.")
    if (folder / "adapter_config.json").is_file():
        raise BadModel("ADAPTER", f"{str(folder)!r} is an adapter; merge it into its model, and export that.")
    for place in _weight_folders(folder):
        _check_weights(place)


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
    """Bytes of all tensors of a checkpoint that are read."""
    return sum(path.stat().st_size for path in _read_files(folder) if path.suffix == ".safetensors")


def _weight_folders(folder: Path) -> list[Path]:
    """Where weights are read: in the parts of a pipeline, which may have others that are not; else in the folder."""
    if not (folder / INDEX).is_file():
        return [folder]
    return [folder / part for part in PARTS if (folder / part).is_dir()]


def _check_weights(place: Path) -> None:
    """Raise `BadModel` unless there are weights, and all of them are whole."""
    for stem in STEMS:
        if (index := place / f"{stem}.safetensors.index.json").is_file():
            _check_index(index)
    tensors = [path for name in WEIGHTS for path in sorted(place.glob(name))]
    pickled = [path for path in sorted(place.iterdir()) if path.suffix in PICKLED]
    if pickled and not tensors:
        words = f"{str(place)!r} has its weights in {_named(place, pickled)}: pickles are not read"
        raise BadModel("PICKLE", f"{words}. Save them with save_pretrained().")
    if not tensors:
        words = f"{str(place)!r} has no whole weights in safetensors; pickles and variants such as fp16 are not read"
        raise BadModel("WEIGHTS_MISSING", f"{words}. Save them with save_pretrained(), or name another revision.")
    for path in tensors:
        check_tensors(path)


def _check_index(path: Path) -> None:
    """Every shard that the index names lies beside it."""
    shards = read_json(path).get("weight_map", {})
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {str(shards)}
    beside = {file.name for pattern in WEIGHTS for file in path.parent.glob(pattern)}
    if wrong := sorted(names - beside):
        words = f"{str(path)!r} names files that are not beside it: {', '.join(wrong)}"
        raise BadModel("CHECKPOINT_INCOMPLETE", f"{words}. Fetch the checkpoint again.")


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
    """What `READ` names, as the hub's client reads such patterns: `*` also stands for what has a `/` in it."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and any(fnmatchcase(name, pattern) for pattern in READ):
            yield path


def _licence(folder: Path) -> str:
    """What the card's front matter calls the licence; the hub's word for one of its own is `other`, with a name."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as file:
        front = _FRONT_MATTER.match(file.read(MAX_CARD_CHARS))
    told = dict(_LICENCE.findall(front[1])) if front else {}
    return ": ".join(filter(None, (told.get("license"), told.get("license_name"))))


def _named(folder: Path, paths: Iterable[Path]) -> str:
    return ", ".join(str(path.relative_to(folder)) for path in paths)
