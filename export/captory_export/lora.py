"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) merged into a painter's weights before it is exported."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from captory_engine.errors import BadModel
from captory_export.checkpoints import INDEX, SETTINGS, Checkpoint, check_tensors, read_json

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # of a pipeline: nothing of them is exported


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
        if not math.isfinite(lora.scale) or lora.scale == 0:
            raise BadModel("LORA", f"{text!r}: a scale of {lora.scale:g} merges nothing; leave the adapter out.")
        if lora.path.suffix != ".safetensors" or not lora.path.is_file():
            raise BadModel("LORA", f"There is no safetensors file at {path!r}.")
        check_tensors(lora.path)
        return lora

    def record(self) -> dict[str, Any]:
        """What the family file tells of it."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": self.path.name, "sha256": digest, "scale": self.scale}


@contextmanager
def merged(checkpoint: Checkpoint, loras: Sequence[Lora], beside: Path) -> Iterator[Checkpoint]:
    """The checkpoint with the adapters merged, in a folder that goes with the block; itself where there are none.

    That folder is made in `beside`. Raises `BadModel` for an adapter that is not of this architecture.
    """
    if not loras:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=beside) as folder:
        _merge(checkpoint.path, loras, Path(folder))
        yield checkpoint._replace(path=Path(folder))


def _merge(source: Path, loras: Sequence[Lora], target: Path) -> None:
    pipeline = _pipeline(source)
    for lora in loras:
        _add(pipeline, lora)
    try:
        pipeline.save_pretrained(target, safe_serialization=True)
    except (OSError, SafetensorError) as error:
        words = f"The merged checkpoint cannot be written to {str(target.parent)!r}; free some room there: {error}"
        raise BadModel("DISK_FULL", words) from error
    if (source / SETTINGS).is_file():
        shutil.copyfile(source / SETTINGS, target / SETTINGS)


def _pipeline(source: Path) -> Any:
    """diffusers' pipeline, without what is not exported and what its folder does not have, such as a T5 left out."""
    from diffusers import DiffusionPipeline

    parts = [name for name, kind in read_json(source / INDEX).items() if isinstance(kind, list)]
    absent = [name for name in parts if name in LEFT_OUT or not (source / name).is_dir()]
    try:
        return DiffusionPipeline.from_pretrained(
            source, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, **dict.fromkeys(absent)
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise BadModel("CHECKPOINT_CORRUPT", f"{str(source)!r} cannot be read to merge adapters: {error}") from error


def _add(pipeline: Any, lora: Lora) -> None:
    """Merge one adapter into whatever it has weights for: denoiser, text encoders or both."""
    _refuse_dora(lora)
    wrong = BadModel("LORA", f"{lora.path.name} is no adapter of this checkpoint's architecture.")
    try:
        pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name, use_safetensors=True)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise wrong from error
    if not _is_adapted(pipeline):  # keys that fit nowhere are only warned of
        raise wrong
    pipeline.fuse_lora(lora_scale=lora.scale)
    pipeline.unload_lora_weights()


def _is_adapted(pipeline: Any) -> bool:
    """Whether an adapter stands at any layer of the pipeline."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return any(isinstance(layer, BaseTunerLayer) for model in models for layer in model.modules())


def _refuse_dora(lora: Lora) -> None:
    """Raise `BadModel` for a weight-decomposed adapter (Liu et al. 2024, arXiv 2402.09353): diffusers would leave its
    scales out.
    """
    with safe_open(lora.path, framework="numpy") as tensors:
        names = list(tensors.keys())
    if any("dora_scale" in name for name in names):
        raise BadModel("LORA", f"{lora.path.name} is a DoRA, which cannot be merged; use a plain LoRA.")
