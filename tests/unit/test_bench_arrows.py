"""The benchmarks' own arrows: a folder of `captory_bench` imports itself and `measuring`, and `--help` loads little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_arrows import imports, loaded_after, package_root

ROOT = package_root("captory_bench")
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
HEAVY = {"numpy", "grpc", "onnxruntime", "pydantic", "PIL", "torch", "rich"}


def strangers(folder: Path) -> Iterator[str]:
    """What files of a folder import of other folders but `measuring`."""
    for path in sorted(folder.rglob("*.py")):
        for module in imports(path, "captory_bench"):
            package, _, rest = module.partition(".")
            if package == "captory_bench" and rest.partition(".")[0] not in ("", folder.name, "measuring"):
                yield f"{path.relative_to(ROOT)}: {module}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_benchmarks_never_import_each_other(folder: str) -> None:
    assert list(strangers(ROOT / folder)) == []


def test_a_stranger_is_seen() -> None:
    assert "measuring" in FOLDERS
    assert any("captory_bench.serve" in found for found in strangers(ROOT))


def test_the_commands_load_nothing_heavy() -> None:
    assert not loaded_after("import captory_bench.commands") & HEAVY
