"""The family file of an exported repository: its sections, and where each checkpoint came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from captory_engine.family import FAMILY_FILE, Family
from captory_engine.manifest import write_manifest
from captory_export.checkpoints import Checkpoint
from captory_export.lora import Lora

DESCRIPTION = "Exported from public checkpoints."


def source_of(checkpoint: Checkpoint, loras: Sequence[Lora] = ()) -> dict[str, Any]:
    """Where a section's weights come from."""
    known = {"checkpoint": checkpoint.name, "revision": checkpoint.revision, "licence": checkpoint.licence}
    return known | ({"loras": [lora.record() for lora in loras]} if loras else {})


def write_family(root: Path, family: Family, files: Mapping[str, bytes]) -> None:
    """Write the family file, and `files` beside it, into the denoiser's folder of `root`, and seal that again."""
    folder = root / family.painter.denoiser
    content = family.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(content, sort_keys=False, width=110, default_flow_style=None)
    for name, data in {FAMILY_FILE: text.encode(), **files}.items():
        (folder / name).write_bytes(data)
    write_manifest(folder)
