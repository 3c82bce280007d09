"""`captory bench report`: the tables of docs/performance.md, written anew between their markers from a folder of JSONs.

A block stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`. One whose figures are not in the folder, or
were of wrong work, is left as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from captory_bench.page.blocks import BLOCKS
from captory_bench.page.markdown import Figures


def read_figures(folder: Path) -> dict[str, Figures]:
    """By benchmark, what stands in the folder."""
    return {
        path.stem.removeprefix("bench-"): json.loads(path.read_text()) for path in sorted(folder.glob("bench-*.json"))
    }


def right_ones(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """The figures of work that was checked and right; the right peers' too where another, which has none, was wrong."""
    return {name: one for name, one in figures.items() if one.get("checks", {"ok": True})["ok"] or one.get("peers")}


def rewrite(page: Path, figures: Mapping[str, Figures]) -> list[str]:
    """Write every block for which there are figures; returns their names. Raises `ValueError` for a missing marker."""
    text, written, right = page.read_text(), [], right_ones(figures)
    for name, block in BLOCKS.items():
        if all(needed in right for needed in block.needs):
            text = _replaced(text, name, block.write(figures))
            written.append(name)
    page.write_text(text)
    return written


def _replaced(text: str, name: str, block: str) -> str:
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the page has no block {name!r}")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{block}\n{end}", text, flags=re.DOTALL)
