"""The colours of the world, and the tints one object is painted with."""

from dataclasses import dataclass

import numpy as np

from captory_training.picto.draw.pen import Colour

BASE_COLOURS: dict[str, Colour] = {
    "red": (216, 40, 38),
    "orange": (244, 130, 22),
    "yellow": (250, 218, 44),
    "green": (34, 150, 62),
    "blue": (40, 94, 218),
    "purple": (128, 54, 180),
    "pink": (248, 134, 188),
    "white": (242, 242, 240),
}
INK: Colour = (30, 26, 34)
BLACK: Colour = (34, 32, 38)
SLATE: Colour = (84, 88, 104)
STEEL: Colour = (150, 156, 166)
CREAM: Colour = (250, 244, 224)
WOOD: Colour = (134, 86, 48)
BARK: Colour = (106, 68, 42)
BLUSH: Colour = (244, 160, 160)
BEAK: Colour = (240, 176, 44)
GLASS: Colour = (176, 220, 240)


@dataclass(frozen=True)
class Tints:
    """An object's colour with a darker and a lighter companion."""

    main: Colour
    dark: Colour
    light: Colour


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def tints(name: str, rng: np.random.Generator) -> Tints:
    """The named colour, slightly different from object to object."""
    red, green, blue = (int(value) for value in np.clip(np.add(BASE_COLOURS[name], rng.normal(0, 5, 3)), 0, 255))
    main = (red, green, blue)
    return Tints(main=main, dark=mix(main, INK, 0.34), light=mix(main, (255, 255, 255), 0.4))
