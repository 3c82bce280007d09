"""`manifest.json`: what the dataset is. Derived from the ledger, never read back as truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from captory_data.durable import atomic_file
from captory_data.errors import LedgerError
from captory_data.ledger import Ledger
from captory_data.records import DIGITAL_SOURCE_TYPE
from captory_data.rows import Shard, StoredJob

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


def build_manifest(ledger: Ledger, job: StoredJob, shards: Sequence[Shard]) -> dict[str, Any]:
    """The manifest of what the ledger holds. Shard names are files below `shards/` or `data/`."""
    return {
        "manifest_version": MANIFEST_VERSION,
        "job": job.spec.canonical(),
        "created": job.created,
        "counts": asdict(ledger.counts()),
        "classes": [{"index": row.position, "id": row.id, "name": row.name} for row in ledger.classes()],
        "models": dict(job.models or {}),
        "backend": job.backend,
        "versions": {"captory": captory_version(), **job.versions},
        "notice": job.notice,
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "shards": [asdict(shard) for shard in shards],
    }


def write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest in one step."""
    with atomic_file(out / MANIFEST_NAME) as file:
        file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest as it lies there.

    Raises:
        LedgerError: it is missing or damaged.
    """
    path = out / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("manifest_version") != MANIFEST_VERSION:
        raise LedgerError(f"{path} is not a manifest of version {MANIFEST_VERSION}")
    return manifest


def captory_version() -> str:
    """The installed distribution's version."""
    try:
        return version("captory")
    except PackageNotFoundError:
        return "unknown"
