"""`captory bench report`: small plots of a folder of JSONs, for docs/images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from captory_bench.page.markdown import Figures

WIDTH_IN, HEIGHT_IN, DPI = 6.4, 3.2, 80


def draw_all(figures: Mapping[str, Figures], folder: Path) -> list[str]:
    """Draw a plot for every benchmark that has one; returns the names of the files. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(name, plot, figures[name], folder) for name, plot in PLOTS.items() if name in figures]


def _draw(name: str, plot: Callable[[Any, Figures], None], figures: Figures, folder: Path) -> str:
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    plot(figure, figures)
    file = folder / f"bench-{name}.png"
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)
    return file.name


def _serve(figure: Any, figures: Figures) -> None:
    """Images a second of every arm, with the spread over rounds."""
    axes, arms = figure.subplots(), figures["arms"]
    speeds = [arm["images_per_s"] for arm in arms.values()]
    spread = [[arm["images_per_s"] - min(arm["images_per_s_by_round"]) for arm in arms.values()],
              [max(arm["images_per_s_by_round"]) - arm["images_per_s"] for arm in arms.values()]]  # fmt: skip
    axes.barh([name.replace("_", " ") for name in arms], speeds, xerr=spread)
    axes.invert_yaxis()
    axes.set_xlabel("images/s")
    axes.tick_params(labelsize=7)


def _guidance(figure: Any, figures: Figures) -> None:
    """What is gained against what is painted right."""
    axes = figure.subplots()
    for name, one in figures["intervals"].items():
        kind = one["quality"]["kind"]
        low, high = kind["interval_95"]
        errors = [[max(0.0, kind["right"] - low)], [max(0.0, high - kind["right"])]]
        axes.errorbar([one["over_constant"]], [kind["right"]], yerr=errors, fmt="o", label=name)
    axes.set_xlabel("images/s over constant guidance")
    axes.set_ylabel("right kind, 95 % interval")
    axes.legend(title="guidance in", fontsize=7)


def _load(figure: Any, figures: Figures) -> None:
    """Goodput against what is offered, both over the peak."""
    axes, peak = figure.subplots(), figures["server"]["rate_per_s"] if figures["server"] else 1.0
    multiples = [int(multiple) for multiple in figures["goodput"]]
    shares = [median(one["goodput_per_s"] for one in rounds) / peak for rounds in figures["goodput"].values()]
    axes.plot(multiples, shares, "o-")
    axes.axhline(0.9, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(multiples, [f"{multiple} x" for multiple in multiples])
    axes.set_ylim(0, 1.2)
    axes.set_xlabel("offered, over the highest rate that holds the bound")
    axes.set_ylabel("images in time, over it")


def _growth(figure: Any, figures: Figures) -> None:
    """Images a second (steps: steps a second) as there is more."""
    for axes, name in zip(figure.subplots(1, 3), ("images", "steps", "clients"), strict=True):
        values = [int(value) for value in figures[name]]
        speeds = [point["images_per_s"] for point in figures[name].values()]
        if name == "steps":
            speeds = [value * speed for value, speed in zip(values, speeds, strict=True)]
        axes.plot(values, speeds, "o-")
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, values, fontsize=7)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name)
        axes.set_title("image steps/s" if name == "steps" else "images/s", fontsize=9)


def _profile(figure: Any, figures: Figures) -> None:
    """Throughput of each graph against its best, by rows a batch."""
    axes = figure.subplots()
    for name, curve in figures["curves"].items():
        rows = [int(value) for value in curve["ms_per_row"]]
        best = min(curve["ms_per_row"].values())
        axes.plot(rows, [best / ms for ms in curve["ms_per_row"].values()], "o-", label=name, markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("rows a batch")
    axes.set_ylabel("rows/s over the best")
    axes.legend(fontsize=7)


PLOTS: dict[str, Callable[[Any, Figures], None]] = {
    "serve": _serve,
    "guidance": _guidance,
    "load": _load,
    "growth": _growth,
    "profile": _profile,
}
