"""The oracle of every job test (reliability.md): the manifest against what was asked, acknowledged and failed.

It reads a dataset with nothing of ours: json, sqlite3, tarfile, pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Verdict:
    """What was found; all but `published` and `failed` must be empty."""

    published: frozenset[str]
    failed: frozenset[str]
    lost: frozenset[str]
    duplicates: frozenset[str]
    unexpected: frozenset[str]
    missing: frozenset[str]
    damage: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicates or self.unexpected or self.missing or self.damage)


def judge(
    out: Path, requested: Collection[str], acknowledged: Collection[str] = (), *, complete: bool = True
) -> Verdict:
    """Judge a dataset. `requested` and `acknowledged` are image ids; `complete` says that the job has ended."""
    manifest = json.loads((out / "manifest.json").read_text())
    damage: list[str] = []
    ids = [image for shard in manifest["shards"] for image in _open_shard(out, shard, damage)]
    failed = frozenset(_ledger_ids(out, "failures"))
    published = frozenset(ids)
    if published != frozenset(_ledger_ids(out, "images")):
        damage.append("ledger and shards list different images")
    if manifest["counts"]["images"] != len(ids):
        damage.append("manifest counts other images than the shards hold")
    damage += [f"stray file {path}" for path in _strays(out, manifest)]
    wanted = frozenset(requested)
    return Verdict(
        published=published,
        failed=failed,
        lost=frozenset(acknowledged) - published,
        duplicates=frozenset(image for image, count in Counter(ids).items() if count > 1),
        unexpected=published - wanted,
        missing=(wanted - published - failed) if complete else frozenset(),
        damage=tuple(damage),
    )


def _open_shard(out: Path, shard: dict[str, object], damage: list[str]) -> list[str]:
    path = next((out / folder / str(shard["name"]) for folder in ("shards", "data") if (out / folder).is_dir()), out)
    if hashlib.sha256(path.read_bytes()).hexdigest() != shard["sha256"]:
        damage.append(f"{path} has another sha256")
    ids = _tar_ids(path, damage) if path.suffix == ".tar" else _parquet_ids(path, damage)
    if len(ids) != shard["count"]:
        damage.append(f"{path} holds {len(ids)} images, not {shard['count']}")
    return ids


def _tar_ids(path: Path, damage: list[str]) -> list[str]:
    members: dict[str, Counter[str]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, _, suffix = info.name.partition(".")
            members.setdefault(key, Counter())[suffix] += 1
            file = tar.extractfile(info)
            if suffix == "json" and file is not None and json.load(file)["id"] != key:
                damage.append(f"{path}: record of {key} has another id")
    for key, suffixes in members.items():
        if not {"json", "txt"} <= suffixes.keys() or not suffixes.keys() & {"png", "webp"}:
            damage.append(f"{path}: sample {key} is incomplete")
        if max(suffixes.values()) > 1:
            damage.append(f"{path}: sample {key} is there twice")
    return list(members)


def _parquet_ids(path: Path, damage: list[str]) -> list[str]:
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    for row in rows if "file_name" in pq.read_schema(path).names else ():
        image = path.parent / row["file_name"]
        if not image.is_file() or hashlib.sha256(image.read_bytes()).hexdigest() != row["sha256"]:
            damage.append(f"{image} is missing or has other bytes")
    return [row["id"] for row in rows]


def _ledger_ids(out: Path, table: str) -> list[str]:
    connection = sqlite3.connect(out / "ledger.sqlite")
    try:
        return [row[0] for row in connection.execute(f"SELECT id FROM {table}")]
    finally:
        connection.close()


def _strays(out: Path, manifest: dict[str, object]) -> list[Path]:
    shards = manifest["shards"]
    assert isinstance(shards, list)
    listed = {shard["name"] for shard in shards}
    found = [path for folder in ("shards", "data") for path in (out / folder).glob("*") if path.is_file()]
    leftovers = list(out.rglob("*.tmp"))
    return leftovers + [path for path in found if path.name not in listed and path not in leftovers]
