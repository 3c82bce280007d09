"""A face with shoulders: skin, hair, age and what it wears."""

from captory_training.picto.draw.palette import BLACK, BLUSH, CREAM, INK, Tints, mix
from captory_training.picto.draw.pen import Colour, Pen
from captory_training.picto.scene import FaceTraits

SKIN_COLOURS: dict[str, Colour] = {"light": (246, 212, 182), "medium": (206, 150, 104), "dark": (118, 76, 52)}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (42, 36, 40),
    "brown": (112, 66, 36),
    "blond": (236, 200, 108),
    "red": (186, 76, 30),
}
GREY: Colour = (206, 206, 206)
LIPS: Colour = (168, 58, 62)


def face(pen: Pen, tints: Tints, traits: FaceTraits) -> None:
    """Paints from back to front: hair, shirt, head, beard, features, fringe, glasses, hat."""
    skin = SKIN_COLOURS[traits.skin]
    half = {"child": 0.5, "adult": 0.46, "old": 0.45}[traits.age]
    _back_hair(pen, traits)
    _shoulders(pen, tints, skin)
    for side in (-1, 1):
        pen.disc(side * half, -0.14, 0.11, mix(skin, INK, 0.12))
    pen.ellipse(0, -0.18, half, 0.52 if traits.age == "child" else 0.6, skin)
    _beard(pen, traits)
    _features(pen, traits, skin)
    _fringe(pen, traits)
    _glasses(pen, traits)
    _hat(pen, tints, traits)


def _shoulders(pen: Pen, tints: Tints, skin: Colour) -> None:
    pen.blob([(-0.94, 0.98), (-0.86, 0.62), (-0.4, 0.42), (0.4, 0.42), (0.86, 0.62), (0.94, 0.98)], tints.main)
    pen.box(-0.2, 0.2, 0.2, 0.52, mix(skin, INK, 0.2))
    pen.polygon([(-0.34, 0.4), (0, 0.72), (0.34, 0.4), (0.22, 0.38), (0, 0.56), (-0.22, 0.38)], tints.dark)


def _back_hair(pen: Pen, traits: FaceTraits) -> None:
    if traits.hair != "none":
        pen.ellipse(0, -0.24, 0.66, 0.66, HAIR_COLOURS[traits.hair])


def _fringe(pen: Pen, traits: FaceTraits) -> None:
    if traits.hair != "none":
        colour = HAIR_COLOURS[traits.hair]
        pen.blob(
            [(-0.54, -0.3), (-0.44, -0.74), (0, -0.92), (0.44, -0.74), (0.54, -0.3), (0.34, -0.5), (-0.1, -0.44)],
            colour,
        )


def _beard(pen: Pen, traits: FaceTraits) -> None:
    if traits.beard:
        colour = _beard_colour(traits)
        pen.blob(
            [(-0.46, -0.06), (-0.3, 0.06), (0, 0.0), (0.3, 0.06), (0.46, -0.06), (0.4, 0.36), (0, 0.62), (-0.4, 0.36)],
            colour,
        )


def _beard_colour(traits: FaceTraits) -> Colour:
    if traits.age == "old":
        return GREY
    return HAIR_COLOURS.get(traits.hair, HAIR_COLOURS["brown"])


def _features(pen: Pen, traits: FaceTraits, skin: Colour) -> None:
    shade = mix(skin, INK, 0.35)
    eye = 0.1 if traits.age == "child" else 0.075
    for side in (-1, 1):
        pen.disc(side * 0.2, -0.2, eye + 0.03, CREAM)
        pen.disc(side * 0.2, -0.19, eye, BLACK)
        if traits.age == "child":
            pen.disc(side * 0.3, 0.03, 0.1, mix(skin, BLUSH, 0.7))
        else:
            brow, width = (GREY, 0.12) if traits.age == "old" else (mix(INK, skin, 0.2), 0.07)
            pen.line([(side * 0.32, -0.36), (side * 0.1, -0.39)], width, brow)
    if traits.age == "old":
        _wrinkles(pen, shade)
    pen.line([(0, -0.14), (0.05, 0.0), (-0.03, 0.02)], 0.05, shade)
    _mouth(pen, traits)


def _wrinkles(pen: Pen, shade: Colour) -> None:
    for height in (-0.6, -0.49):
        pen.line([(-0.2, height), (0.2, height)], 0.04, shade)
    for side in (-1, 1):
        pen.line([(side * 0.14, -0.06), (side * 0.32, -0.02)], 0.04, shade)
        pen.line([(side * 0.2, 0.04), (side * 0.3, 0.2)], 0.045, shade)


def _mouth(pen: Pen, traits: FaceTraits) -> None:
    if traits.smile:
        pen.blob([(-0.24, 0.12), (0, 0.17), (0.24, 0.12), (0.14, 0.28), (0, 0.32), (-0.14, 0.28)], LIPS)
        pen.polygon([(-0.17, 0.15), (0.17, 0.15), (0.1, 0.22), (-0.1, 0.22)], CREAM)
    else:
        pen.line([(-0.14, 0.2), (0.14, 0.2)], 0.08, LIPS)


def _glasses(pen: Pen, traits: FaceTraits) -> None:
    if not traits.glasses:
        return
    pen.line([(-0.46, -0.22), (0.46, -0.22)], 0.06, BLACK)
    for side in (-1, 1):
        pen.disc(side * 0.22, -0.18, 0.21, BLACK)
        pen.disc(side * 0.22, -0.18, 0.145, (214, 236, 244))
        pen.disc(side * 0.21, -0.18, 0.07, BLACK)


def _hat(pen: Pen, tints: Tints, traits: FaceTraits) -> None:
    if traits.hat:
        pen.blob([(-0.48, -0.5), (-0.44, -0.88), (-0.2, -1.0), (0.2, -1.0), (0.44, -0.88), (0.48, -0.5)], tints.main)
        pen.ellipse(0, -0.52, 0.74, 0.12, tints.main)
        pen.box(-0.48, -0.72, 0.48, -0.6, tints.dark)
