"""The family file of an exported repository: its sections, and where each checkpoint came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from captory_engine.family import FAMILY_FILE, read_family
from captory_engine.manifest import write_manifest
from captory_export.checkpoints import Checkpoint
from captory_export.lora import Lora
from captory_export.repository import to_json

DESCRIPTION = "Exported from public checkpoints."


def source_of(checkpoint: Checkpoint, loras: Sequence[Lora] = ()) -> dict[str, Any]:
    """Where a section's weights come from."""
    known = {"checkpoint": checkpoint.name, "revision": checkpoint.revision, "licence": checkpoint.licence}
    return known | ({"loras": [lora.record() for lora in loras]} if loras else {})


def write_family(
    root: Path,
    name: str,
    sections: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Any],
    report: Mapping[str, Any],
) -> None:
    """Write family file and report into the denoiser's folder of the repository `root`, and seal it again.

    `own` is what the painter's checkpoint says of the family: description, and whether it knows one world only.
    Raises `BadModel` when a section does not hold.
    """
    folder = root / sections["painter"]["denoiser"]
    family = {
        "name": name,
        "description": own.get("description", DESCRIPTION),
        "in_world_only": own.get("in_world_only", False),
        "sources": sources,
        **sections,
    }
    text = yaml.safe_dump(family, sort_keys=False, width=110, default_flow_style=None)
    (folder / FAMILY_FILE).write_text(text, encoding="utf-8")
    (folder / "report.json").write_bytes(to_json(report))
    read_family(folder / FAMILY_FILE)
    write_manifest(folder)
