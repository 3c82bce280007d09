"""Where the objects of a scene stand; all lengths are in pixels of a 64-pixel picture."""

from typing import NamedTuple

import numpy as np

from captory_training.picto.scene import Group, Scene

NOMINAL_PX = 64
CENTRE = NOMINAL_PX / 2


class Spot(NamedTuple):
    """One object's centre and half size."""

    x: float
    y: float
    radius: float


CLUSTERS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0, 0),),),
    2: (((-15.5, 0), (15.5, 0)),),
    3: (((0, -15), (-15.5, 15), (15.5, 15)), ((-15.5, -15), (15.5, -15), (0, 15))),
    4: (((-15.5, -15.5), (15.5, -15.5), (-15.5, 15.5), (15.5, 15.5)),),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
SINGLE_RADII = {"small": (14.0, 16.0), "large": (24.0, 26.5)}
SHIFTED_LARGE_RADII = (22.0, 23.0)
CLUSTER_RADII = {"small": (12.0, 12.6), "large": (14.8, 15.6)}


def place(scene: Scene, rng: np.random.Generator) -> list[list[Spot]]:
    """The spots of every group, in drawing order."""
    crowded = len(scene.groups) > 1
    return [_place_group(group, crowded, rng) for group in scene.groups]


def _place_group(group: Group, crowded: bool, rng: np.random.Generator) -> list[Spot]:
    radius = rng.uniform(*_radius_range(group, crowded))
    dx, dy = DIRECTIONS[group.position]
    reach = CENTRE - radius - 1.5
    clusters = CLUSTERS[group.count]
    cluster = clusters[int(rng.integers(len(clusters)))]
    jitter = rng.uniform(-0.8, 0.8, size=(len(cluster), 2))
    return [
        Spot(CENTRE + dx * reach + x + jx, CENTRE + dy * reach + y + jy, radius)
        for (x, y), (jx, jy) in zip(cluster, jitter, strict=True)
    ]


def _radius_range(group: Group, crowded: bool) -> tuple[float, float]:
    if crowded or group.count > 1:
        return CLUSTER_RADII[group.size]
    if group.size == "large" and group.position != "centre":
        return SHIFTED_LARGE_RADII
    return SINGLE_RADII[group.size]
