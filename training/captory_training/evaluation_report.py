"""An evaluation as figures: plain shares for machines, a table with intervals for people."""

from __future__ import annotations

from math import sqrt
from typing import Any

from rich.table import Table

from captory_training.evaluation import Evaluation, Share

Z_95 = 1.959964
TITLES = {"oracle": "oracle on true pictures", "captioner": "long captions", "painter": "images from full captions"}


def shares_values(made: Evaluation) -> dict[str, Any]:
    """Shares in [0, 1], and what they are shares of."""
    shares = {part: {name: share.value for name, share in named.items()} for part, named in _parts(made).items()}
    return {
        **shares,
        "n": len(made.scenes),
        "failed": {"captions": made.captions.count(None), "paintings": sum(one is None for one in made.paintings)},
    }


def shares_table(made: Evaluation) -> Table:
    """One row a share, with its 95 % interval."""
    table = Table("what", "attribute", "right", "95 % interval", title=f"{len(made.scenes)} fresh scenes")
    for part, named in _parts(made).items():
        for name, share in named.items():
            low, high = wilson(share)
            table.add_row(TITLES[part], name, f"{share.value:.1%}", f"{low:.1%} to {high:.1%}")
        table.add_section()
    values = shares_values(made)["failed"]
    table.caption = f"not answered, and counted as wrong: {values['captions']} captions, {values['paintings']} images"
    return table


def wilson(share: Share) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds near 0 and 1 too."""
    num, value, square = share.num, share.value, Z_95**2
    centre = (value + square / (2 * num)) / (1 + square / num)
    half = Z_95 / (1 + square / num) * sqrt(value * (1 - value) / num + square / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def _parts(made: Evaluation) -> dict[str, dict[str, Share]]:
    return {"captioner": made.captioner(), "painter": made.painter(), "oracle": made.oracle()}
