"""The eight things: machine, club, device, guitar, house, tree, boat and mug."""

from captory_training.picto.draw.palette import BARK, BLACK, CREAM, GLASS, SLATE, STEEL, WOOD, Tints, mix
from captory_training.picto.draw.pen import Pen

LAMPLIGHT = (255, 226, 130)
STITCH = (206, 60, 56)
COFFEE = (74, 46, 34)
GUITAR_BODY = (
    (0.18, -0.3), (-0.1, -0.22), (-0.34, -0.04), (-0.7, 0.04), (-0.96, 0.4), (-0.84, 0.84), (-0.38, 0.97),
    (0.02, 0.72), (0.1, 0.4), (0.32, 0.2), (0.38, -0.06), (0.12, 0.1), (0.0, 0.02),
)  # fmt: skip


def crane_machine(pen: Pen, tints: Tints) -> None:
    """A tower crane with a counterweight and a load on its cable."""
    pen.box(-0.6, 0.8, 0.14, 0.98, SLATE)
    pen.line([(-0.84, -0.5), (-0.23, -0.92), (0.86, -0.5)], 0.07, SLATE)
    pen.line([(0.64, -0.46), (0.64, 0.1)], 0.09, SLATE)
    pen.box(0.42, 0.06, 0.88, 0.44, WOOD)
    pen.box(0.42, 0.2, 0.88, 0.29, mix(WOOD, CREAM, 0.5))
    pen.box(-0.37, -0.5, -0.09, 0.82, tints.main)
    pen.polygon([(-0.37, -0.5), (-0.23, -0.98), (-0.09, -0.5)], tints.main)
    for top in (-0.2, 0.12, 0.44):
        pen.line([(-0.34, top), (-0.12, top + 0.16), (-0.34, top + 0.32)], 0.07, tints.dark)
    pen.box(-0.94, -0.58, 0.96, -0.36, tints.main)
    for left in (0.1, 0.36, 0.62):
        pen.line([(left, -0.4), (left + 0.13, -0.54), (left + 0.26, -0.4)], 0.05, tints.dark)
    pen.box(-0.96, -0.5, -0.62, -0.1, SLATE)
    pen.box(-0.14, -0.4, 0.2, -0.06, tints.light)
    pen.box(-0.04, -0.32, 0.16, -0.16, GLASS)


def bat_club(pen: Pen, tints: Tints) -> None:
    """A baseball bat on the diagonal, with its ball."""
    pen.disc(0.5, 0.52, 0.29, CREAM)
    pen.curve([(0.36, 0.32), (0.48, 0.52), (0.36, 0.74)], 0.07, STITCH)
    pen.disc(-0.78, 0.78, 0.16, tints.dark)
    pen.polygon([(-0.84, 0.7), (-0.16, -0.12), (0.42, -0.8), (0.82, -0.42), (0.12, 0.16), (-0.7, 0.84)], tints.main)
    pen.disc(0.62, -0.61, 0.275, tints.main)
    pen.line([(-0.02, -0.12), (0.54, -0.68)], 0.1, tints.light)
    for step in range(4):
        offset = 0.11 * step
        pen.line([(-0.77 + offset, 0.66 - offset), (-0.66 + offset, 0.77 - offset)], 0.08, BLACK)


def mouse_device(pen: Pen, tints: Tints) -> None:
    """A computer mouse from above, its cable curling away."""
    pen.curve([(0.0, -0.36), (0.0, -0.72), (0.3, -0.86), (0.54, -0.62), (0.86, -0.74)], 0.14, SLATE)
    pen.blob(
        [(0, -0.46), (0.4, -0.36), (0.55, 0.1), (0.52, 0.66), (0, 0.96), (-0.52, 0.66), (-0.55, 0.1), (-0.4, -0.36)],
        tints.main,
    )
    pen.blob([(0.06, -0.4), (0.36, -0.3), (0.48, 0.12), (0.06, 0.16)], tints.light)
    pen.blob([(-0.06, -0.4), (-0.36, -0.3), (-0.48, 0.12), (-0.06, 0.16)], tints.light)
    pen.line([(-0.5, 0.2), (0.5, 0.2)], 0.07, tints.dark)
    pen.line([(0.0, -0.42), (0.0, 0.18)], 0.07, tints.dark)
    pen.ellipse(0, -0.12, 0.12, 0.2, BLACK)
    pen.ellipse(0, -0.12, 0.05, 0.1, STEEL)


def bass_guitar(pen: Pen, tints: Tints) -> None:
    """Leaning to the right: horned body, long neck, four tuners."""
    pen.line([(-0.3, 0.36), (0.66, -0.7)], 0.2, WOOD)
    pen.polygon([(0.52, -0.7), (0.66, -0.58), (0.96, -0.84), (0.82, -0.98)], tints.dark)
    for x, y in ((0.56, -0.8), (0.72, -0.95), (0.76, -0.58), (0.92, -0.73)):
        pen.disc(x, y, 0.075, STEEL)
    pen.blob(GUITAR_BODY, tints.main)
    pen.blob([(-0.2, 0.16), (0.0, 0.3), (-0.1, 0.64), (-0.44, 0.82), (-0.36, 0.5)], tints.light)
    pen.line([(-0.32, 0.38), (0.3, -0.3)], 0.12, WOOD)
    pen.line([(-0.48, 0.34), (-0.26, 0.54)], 0.09, BLACK)
    pen.line([(-0.64, 0.52), (-0.44, 0.7)], 0.11, STEEL)
    pen.line([(-0.54, 0.62), (0.66, -0.7)], 0.045, CREAM)


def house(pen: Pen, tints: Tints) -> None:
    """A front with a gabled slate roof, two windows and a door."""
    pen.box(0.36, -0.9, 0.6, -0.3, BARK)
    pen.box(-0.72, -0.2, 0.72, 0.92, tints.main)
    pen.polygon([(-0.96, -0.1), (0, -0.94), (0.96, -0.1)], SLATE)
    pen.polygon([(-0.5, -0.2), (0, -0.66), (0.5, -0.2)], tints.main)
    pen.disc(0, -0.32, 0.12, LAMPLIGHT)
    for left in (-0.58, 0.22):
        pen.box(left, 0.06, left + 0.36, 0.42, CREAM)
        pen.box(left + 0.06, 0.12, left + 0.3, 0.36, LAMPLIGHT)
    pen.box(-0.2, 0.4, 0.16, 0.92, WOOD)
    pen.disc(0.08, 0.68, 0.05, LAMPLIGHT)
    pen.box(-0.78, 0.84, 0.78, 0.96, tints.dark)


def tree(pen: Pen, tints: Tints) -> None:
    """A round leafy crown on a brown trunk."""
    pen.polygon([(-0.14, 0.1), (0.14, 0.1), (0.16, 0.78), (0.34, 0.96), (-0.34, 0.96), (-0.16, 0.78)], BARK)
    pen.line([(0.06, 0.5), (0.34, 0.2)], 0.13, BARK)
    for x, y, radius in ((-0.46, 0.08, 0.38), (0.46, 0.08, 0.38), (0, 0.14, 0.36)):
        pen.disc(x, y, radius, tints.dark)
    for x, y, radius in ((-0.5, -0.12, 0.38), (0.5, -0.14, 0.38), (0, -0.5, 0.46), (0, -0.06, 0.42)):
        pen.disc(x, y, radius, tints.main)
    for x, y in ((-0.16, -0.66), (-0.6, -0.24), (0.4, -0.28), (-0.04, -0.18)):
        pen.curve([(x - 0.12, y + 0.08), (x, y), (x + 0.16, y + 0.04)], 0.1, tints.light)


def boat(pen: Pen, tints: Tints) -> None:
    """A sailing boat with a mainsail and a jib."""
    pen.box(-0.1, -0.96, 0.04, 0.5, BARK)
    pen.blob([(0.1, -0.88), (0.5, -0.4), (0.78, 0.24), (0.4, 0.3), (0.1, 0.3)], tints.light)
    pen.polygon([(-0.16, -0.76), (-0.16, 0.28), (-0.76, 0.28)], CREAM)
    pen.polygon([(-0.98, 0.38), (0.98, 0.38), (0.66, 0.9), (-0.62, 0.9)], tints.main)
    pen.polygon([(-0.98, 0.38), (0.98, 0.38), (0.9, 0.52), (-0.9, 0.52)], tints.dark)
    for x in (-0.36, 0.0, 0.36):
        pen.disc(x, 0.68, 0.085, CREAM)


def mug(pen: Pen, tints: Tints) -> None:
    """A mug of coffee with its handle to the right."""
    pen.curve([(0.4, -0.34), (0.84, -0.3), (0.86, 0.24), (0.4, 0.42)], 0.2, tints.main)
    pen.polygon([(-0.76, -0.6), (0.5, -0.6), (0.44, 0.76), (-0.7, 0.76)], tints.main)
    pen.ellipse(-0.13, 0.76, 0.57, 0.17, tints.main)
    pen.ellipse(-0.13, -0.6, 0.63, 0.25, tints.light)
    pen.ellipse(-0.13, -0.57, 0.51, 0.17, COFFEE)
    pen.disc(-0.25, 0.12, 0.17, CREAM)
    pen.disc(0.0, 0.12, 0.17, CREAM)
    pen.polygon([(-0.4, 0.2), (0.15, 0.2), (-0.125, 0.52)], CREAM)
