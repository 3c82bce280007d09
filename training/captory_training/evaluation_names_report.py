"""Class names against captions as figures: the mean over seeds with its 95 % interval, for machines and for people."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.table import Table

from captory_training.evaluation_names import ARMS, BASELINE, POLYSEMOUS, Trial

# Student's t at 97.5 %, by the number of seeds
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
ATTRIBUTES = ("kind", "colour", "background")
CLASS_NAMES = tuple(dict.fromkeys(kind.class_name for kind in POLYSEMOUS))


class Estimate(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval; from one seed there is no interval."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        spread = "" if self.half_width is None else f" ± {100 * self.half_width:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, of at most ten, with its interval (Student 1908)."""
    num = len(values)
    return Estimate(mean(values), T_95[num] * stdev(values) / sqrt(num) if num > 1 else None)


def names_values(trials: Sequence[Trial]) -> dict[str, Any]:
    """Shares in [0, 1] by arm, and how much more often than with the raw name alone the kind is right."""
    return {
        "arms": {arm: _arm(trials, arm) for arm in ARMS},
        "n": len(trials[0].scenes),
        "seeds": len(trials),
        "failed": {arm: sum(trial.readings[arm].count(None) for trial in trials) for arm in ARMS},
    }


def _arm(trials: Sequence[Trial], arm: str) -> dict[str, Any]:
    def shares(attribute: str, class_name: str = "", of: str = arm) -> list[float]:
        return [trial.share(of, attribute, class_name).value for trial in trials]

    gains = [own - other for own, other in zip(shares("kind"), shares("kind", of=BASELINE), strict=True)]
    return {
        "right": {name: over_seeds(shares(name))._asdict() for name in ATTRIBUTES},
        "kind_over_baseline": over_seeds(gains)._asdict(),
        "kind_by_class": {name: over_seeds(shares("kind", name))._asdict() for name in CLASS_NAMES},
    }


def names_table(trials: Sequence[Trial]) -> Table:
    """One column an arm: a row each would be wider than a terminal."""
    figures = names_values(trials)
    title = f"right, in % of {figures['n']} images a seed, {figures['seeds']} seeds; ± is the 95 % interval over seeds"
    table = Table("prompt", title=title)
    for arm in figures["arms"]:
        table.add_column(arm.replace(", ", ",\n"), justify="right")
    rows = zip(*(_parts(found) for found in figures["arms"].values()), strict=True)
    names = ("kind", "over raw name", *CLASS_NAMES, *ATTRIBUTES[1:])
    for name, parts in zip(names, rows, strict=True):
        table.add_row(name, *(str(Estimate(**one)) for one in parts))
    table.caption = f"not painted, and counted as wrong: {sum(figures['failed'].values())} images"
    return table


def _parts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the table tells of an arm, from top to bottom."""
    right, by_class = found["right"], found["kind_by_class"].values()
    return [right["kind"], found["kind_over_baseline"], *by_class, *(right[name] for name in ATTRIBUTES[1:])]
