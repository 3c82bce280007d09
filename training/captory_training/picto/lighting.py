"""Light from one side: shading on the objects, their shadow and the slope over the background."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from captory_training.picto.layout import NOMINAL_PX, Spot
from captory_training.picto.scene import Scene

Floats = NDArray[np.floating]

FLYING_KINDS = frozenset({"bat_animal", "bass_fish"})


def shading(scene: Scene, spots: list[list[Spot]], solid: Floats, size_px: int) -> Floats:
    """Brightness of the objects, [s, s]: a slope over each object and rounded edges."""
    toward = _toward(scene.light)
    scale = size_px / NOMINAL_PX
    height = _blurred(solid, 2.2 * scale)
    edges = np.gradient(height, axis=1) * toward + np.gradient(height, axis=0) * 0.5
    shade = 0.98 + 1.5 * scale * edges
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / scale
    for spot in (spot for group_spots in spots for spot in group_spots):
        columns, rows = (np.abs(axis - middle) <= spot.radius + 2 for middle in (spot.x, spot.y))
        slope = np.clip((axis - spot.x) / spot.radius, -1, 1) * toward
        shade[rows] -= np.where(columns, 0.2 * slope, 0)
    return shade


def shadow(scene: Scene, spots: list[list[Spot]], mask: Floats, size_px: int) -> Floats:
    """Darkness on the background, [s, s] in 0..1: a soft cast shadow, and contact where objects stand."""
    scale = size_px / NOMINAL_PX
    offset = round(2 * scale)
    cast = np.roll(_blurred(mask, 1.6 * scale), (offset, offset * _toward(scene.light)), axis=(0, 1))
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / scale
    contact = np.zeros_like(mask)
    for group, group_spots in zip(scene.groups, spots, strict=True):
        for spot in group_spots if group.kind not in FLYING_KINDS else ():
            across = np.exp(-(((axis - spot.x) / (0.7 * spot.radius)) ** 2))
            down = np.exp(-(((axis - spot.y - 0.96 * spot.radius) / (0.16 * spot.radius)) ** 2))
            contact = np.maximum(contact, down[:, None] * across)
    return np.clip(0.32 * cast + 0.3 * contact, 0, 0.6)


def side_light(light: str, size_px: int) -> Floats:
    """Brightness of the background from side to side, [1, s, 1]."""
    slope = np.linspace(1, -1, size_px, dtype=np.float32) * _toward(light)
    return (1 + 0.1 * slope)[None, :, None]


def _toward(light: str) -> int:
    """The horizontal direction in which the light travels."""
    return 1 if light == "left" else -1


def _blurred(mask: Floats, radius_px: float) -> Floats:
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius_px))
    return np.asarray(image, dtype=np.float32) / 255
