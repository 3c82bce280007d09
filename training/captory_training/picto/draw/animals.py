"""The four animals: crane, bat, mouse and bass."""

from captory_training.picto.draw.palette import BEAK, BLACK, BLUSH, CREAM, SLATE, Tints
from captory_training.picto.draw.pen import Pen


def crane_bird(pen: Pen, tints: Tints) -> None:
    """Standing in profile, one knee bent."""
    pen.line([(-0.16, 0.25), (-0.2, 0.92), (-0.02, 0.94)], 0.12, SLATE)
    pen.line([(0.06, 0.25), (0.3, 0.52), (0.1, 0.72)], 0.12, SLATE)
    pen.blob([(-0.3, -0.05), (-0.72, 0.12), (-0.86, 0.48), (-0.5, 0.38), (-0.2, 0.3)], BLACK)
    pen.blob(
        [(0.34, -0.1), (0.26, 0.22), (-0.14, 0.42), (-0.5, 0.34), (-0.72, 0.12), (-0.3, -0.2), (0.1, -0.22)], tints.main
    )
    pen.curve([(0.22, 0.04), (0.4, -0.2), (0.22, -0.5), (0.34, -0.76)], 0.21, tints.main)
    pen.polygon([(0.44, -0.9), (0.98, -0.66), (0.44, -0.64)], BEAK)
    pen.ellipse(0.38, -0.78, 0.2, 0.17, tints.main)
    pen.blob([(0.1, -0.06), (-0.1, 0.24), (-0.56, 0.26), (-0.3, -0.04)], tints.dark)
    pen.disc(0.42, -0.79, 0.065, BLACK)


def bat_animal(pen: Pen, tints: Tints) -> None:
    """Seen from the front with both wings spread."""
    for side in (-1, 1):
        _bat_wing(pen, tints, side)
    for side in (-1, 1):
        pen.polygon([(side * 0.04, -0.38), (side * 0.26, -0.82), (side * 0.32, -0.24)], tints.dark)
    pen.ellipse(0, 0.2, 0.23, 0.46, tints.dark)
    pen.disc(0, -0.22, 0.31, tints.dark)
    for side in (-1, 1):
        pen.disc(side * 0.13, -0.26, 0.1, CREAM)
        pen.disc(side * 0.12, -0.25, 0.05, BLACK)
    pen.polygon([(-0.12, -0.09), (0.12, -0.09), (0.06, 0.04), (0, -0.04), (-0.06, 0.04)], CREAM)


def _bat_wing(pen: Pen, tints: Tints, side: int) -> None:
    tips = [(0.98, 0.3), (0.64, 0.44), (0.3, 0.5)]
    edge = [(0.1, -0.2), (0.42, -0.42), (0.62, -0.58), (0.86, -0.36), tips[0]]
    scallops = [(0.8, 0.18), tips[1], (0.46, 0.26), tips[2], (0.1, 0.2)]
    pen.polygon([(side * x, y) for x, y in edge + scallops], tints.main)
    for x, y in tips[:2]:
        pen.line([(side * 0.6, -0.5), (side * x * 0.97, y * 0.9)], 0.06, tints.dark)


def mouse_animal(pen: Pen, tints: Tints) -> None:
    """Sitting in profile under its round ears, tail up."""
    pen.curve([(-0.5, 0.62), (-0.86, 0.6), (-0.92, 0.14), (-0.68, -0.2), (-0.84, -0.54)], 0.14, BLUSH)
    pen.disc(0.5, -0.42, 0.27, tints.dark)
    pen.ellipse(-0.2, 0.36, 0.58, 0.48, tints.main)
    pen.blob([(0.0, 0.1), (0.2, -0.28), (0.56, -0.22), (0.96, 0.24), (0.6, 0.46), (0.1, 0.46)], tints.main)
    pen.disc(0.08, -0.42, 0.36, tints.main)
    pen.disc(0.08, -0.42, 0.22, BLUSH)
    pen.disc(0.52, 0.0, 0.09, BLACK)
    pen.disc(0.93, 0.24, 0.1, BLUSH)
    for x in (-0.4, 0.16):
        pen.ellipse(x, 0.82, 0.24, 0.1, BLUSH)


def bass_fish(pen: Pen, tints: Tints) -> None:
    """In profile, with a big mouth, a spiny back and a forked tail."""
    pen.polygon([(-0.5, 0.0), (-0.98, -0.48), (-0.84, 0.02), (-0.98, 0.5)], tints.dark)
    pen.polygon(
        [(-0.5, -0.2), (-0.46, -0.58), (-0.22, -0.48), (-0.06, -0.72), (0.14, -0.52), (0.32, -0.62), (0.4, -0.3)],
        tints.dark,
    )
    pen.polygon([(-0.3, 0.3), (-0.4, 0.66), (0.02, 0.4)], tints.dark)
    pen.blob(
        [(-0.66, 0.0), (-0.2, -0.38), (0.4, -0.42), (0.86, -0.12), (0.94, 0.06), (0.8, 0.3), (0.3, 0.46), (-0.2, 0.36)],
        tints.main,
    )
    pen.blob([(-0.5, 0.14), (0.2, 0.22), (0.72, 0.34), (0.3, 0.45), (-0.2, 0.35)], tints.light)
    pen.line([(-0.5, 0.0), (0.2, -0.03)], 0.08, tints.dark)
    pen.line([(0.94, 0.08), (0.64, 0.16)], 0.07, BLACK)
    pen.curve([(0.4, -0.3), (0.3, 0.0), (0.36, 0.28)], 0.07, tints.dark)
    pen.polygon([(0.22, 0.08), (-0.14, 0.02), (-0.1, 0.26)], tints.dark)
    pen.disc(0.62, -0.14, 0.13, CREAM)
    pen.disc(0.64, -0.14, 0.07, BLACK)
