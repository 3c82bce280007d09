"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) merged into a painter's weights before it is exported."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from captory_engine.errors import BadModel
from captory_export.checkpoints import SETTINGS, Checkpoint, check_tensors


class Lora(NamedTuple):
    """An adapter's file, and how much of it is added."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`PATH[:scale]`. Raises `BadModel` for what is no safetensors file or no scale."""
        path, _, scale = text.rpartition(":") if ":" in text else (text, "", "1")
        try:
            lora = cls(Path(path), float(scale))
        except ValueError:
            raise BadModel("LORA", f"{text!r}: behind the last colon stands a scale, such as 0.8.") from None
        if lora.path.suffix != ".safetensors" or not lora.path.is_file():
            raise BadModel("LORA", f"{path!r} is no safetensors file.")
        check_tensors(lora.path)
        return lora

    def record(self) -> dict[str, Any]:
        """What the family file tells of it."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": self.path.name, "sha256": digest, "scale": self.scale}


@contextmanager
def merged(checkpoint: Checkpoint, loras: Sequence[Lora]) -> Iterator[Checkpoint]:
    """The checkpoint with the adapters merged, in a folder that goes with the block; itself where there are none.

    Raises `BadModel` for an adapter that is not of this architecture.
    """
    if not loras:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="captory-lora-") as folder:
        _merge(checkpoint.path, loras, Path(folder))
        yield checkpoint._replace(path=Path(folder))


def _merge(source: Path, loras: Sequence[Lora], target: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(
        source, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    for lora in loras:
        _add(pipeline, lora)
    pipeline.save_pretrained(target, safe_serialization=True)
    if (source / SETTINGS).is_file():
        shutil.copyfile(source / SETTINGS, target / SETTINGS)


def _add(pipeline: Any, lora: Lora) -> None:
    wrong = BadModel("LORA", f"{lora.path.name} is no adapter of this checkpoint's architecture.")
    try:
        pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name, use_safetensors=True)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise wrong from error
    if not pipeline.get_active_adapters():  # keys that fit nowhere are only warned of
        raise wrong
    pipeline.fuse_lora(lora_scale=lora.scale)
    pipeline.unload_lora_weights()
