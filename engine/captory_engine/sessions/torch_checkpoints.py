"""A model of the repository as torch modules: its weights come from a folder of Hugging Face checkpoints.

The repository's model folder says what goes in and out; the checkpoint of model `FAMILY_painter_unet` is the folder
`FAMILY/painter/unet` below the checkpoints' root, and likewise for the other roles. Only safetensors are read, and
only from a folder that is what its `manifest.sha256` says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError
from torch import nn

from captory_engine.errors import BadModel
from captory_engine.manifest import MANIFEST, verify_manifest
from captory_engine.sessions.options import SessionOptions
from captory_engine.sessions.torch import TorchSession
from captory_engine.sessions.torch_painter import open_unet, open_vae
from captory_engine.sessions.torch_words import BlipDecoder, BlipVision, Qwen2Decoder, TextEncoder

if TYPE_CHECKING:
    from captory_engine.repository import ModelFolder


class Role(NamedTuple):
    """What a model does in its family: where its checkpoint lies and how it is opened."""

    folder: str
    open: Callable[[Path], nn.Module]


ROLES = {
    "_captioner_vision": Role("captioner", BlipVision),
    "_captioner_decoder": Role("captioner", BlipDecoder),
    "_writer_decoder": Role("writer", Qwen2Decoder),
    "_painter_text_encoder": Role("painter/text_encoder", TextEncoder),
    "_painter_unet": Role("painter/unet", open_unet),
    "_painter_vae_decoder": Role("painter/vae", open_vae),
}


def default_checkpoints() -> Path:
    """Return the checkpoints of a checkout; a wheel brings none."""
    return Path(__file__).parents[3] / "training" / "checkpoints"


def open_checkpoint(root: Path, name: str) -> tuple[nn.Module, str]:
    """Return the module of the model `name`, in float32 on the CPU, and the digest of its checkpoint's files.

    Raises `BadModel` when the name has no known role, or the checkpoint is missing, not what its manifest says, or
    cannot be read.
    """
    role = next((suffix for suffix in ROLES if name.endswith(suffix)), None)
    if role is None:
        raise BadModel("CHECKPOINT_ROLE", f"The torch backend knows no role for a model called {name!r}.")
    folder = root / name.removesuffix(role) / ROLES[role].folder
    if not folder.is_dir():
        raise BadModel("CHECKPOINT_MISSING", f"Model {name!r} has no checkpoint at {str(folder)!r}.")
    digest = _verify(folder, name)
    try:
        return ROLES[role].open(folder), digest
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadModel("CHECKPOINT_UNREADABLE", f"The checkpoint of model {name!r} cannot be loaded.") from error


def _verify(folder: Path, name: str) -> str:
    """Check every file against the manifest; return the digest."""
    if not (folder / MANIFEST).is_file():
        words = f"has no {MANIFEST}; `sha256sum * > {MANIFEST}` in its folder writes one"
        raise BadModel("MANIFEST_MISSING", f"The checkpoint of model {name!r} {words}.")
    try:
        return verify_manifest(folder)
    except BadModel as error:
        raise BadModel(error.reason, f"The checkpoint of model {name!r} is refused. {error}") from error


def open_model_folder(model: ModelFolder, options: SessionOptions) -> TorchSession:
    """Return a session with the repository's names and shapes over the checkpoint's weights, under their digest."""
    module, digest = open_checkpoint(options.torch.checkpoints or default_checkpoints(), model.name)
    ends = (model.inputs, model.outputs)
    return TorchSession(model.name, module, *ends, max_batch=model.max_batch, digest=digest, options=options)
