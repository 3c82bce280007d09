"""A pen that fills shapes given in an object's own coordinates: x right, y down, both in [-1, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]
Curve = NDArray[np.float64]

_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_HALF_TURN = np.linspace(-np.pi / 2, np.pi / 2, 7)
_HALF_CIRCLE = np.stack([np.cos(_HALF_TURN), np.sin(_HALF_TURN)], axis=1)


@dataclass(frozen=True)
class Pose:
    """How an object is turned: `angle_rad` clockwise, mirrored or not, `stretch` > 1 is wider than tall."""

    angle_rad: float
    flip: bool
    stretch: float

    def matrix(self, radius_px: float) -> Curve:
        """Object coordinates to canvas pixels, [2, 2]."""
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        scale = np.diag([(-1 if self.flip else 1) * self.stretch, 1 / self.stretch])
        turned: Curve = radius_px * np.array([[cos, -sin], [sin, cos]]) @ scale
        return turned


class Pen:
    """Fills shapes on an RGBA canvas; what it draws is opaque, edges are smoothed by downsampling later."""

    def __init__(self, canvas: Image.Image, centre_px: tuple[float, float], radius_px: float, pose: Pose) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._centre = np.array(centre_px)
        self._matrix = pose.matrix(radius_px).T

    def polygon(self, points: Points | Curve, colour: Colour) -> None:
        """Fills a closed outline, [points, 2]."""
        pixels = np.asarray(points, dtype=np.float64) @ self._matrix + self._centre
        self._draw.polygon(pixels.ravel().tolist(), fill=(*colour, 255))

    def blob(self, points: Points, colour: Colour) -> None:
        """A smooth closed outline through the points."""
        self.polygon(smooth(points, closed=True), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, tilt_deg: float = 0.0) -> None:
        """Fills an ellipse, turned clockwise by `tilt_deg`."""
        cos, sin = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
        self.polygon(_CIRCLE * (rx, ry) @ np.array([[cos, sin], [-sin, cos]]) + (x, y), colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fills a circle."""
        self.polygon(_CIRCLE * radius + (x, y), colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fills a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def line(self, points: Points | Curve, width: float, colour: Colour) -> None:
        """A thick line with round joints and ends."""
        path = np.asarray(points, dtype=np.float64)
        start, end = path[:-1, None, :], path[1:, None, :]
        along = end - start
        along /= np.hypot(along[..., :1], along[..., 1:])
        across = along[..., ::-1] * (-1, 1)
        cap = (_HALF_CIRCLE[:, :1] * along + _HALF_CIRCLE[:, 1:] * across) * (width / 2)
        for segment in np.concatenate([end + cap, start - cap], axis=1):
            self.polygon(segment, colour)

    def curve(self, points: Points, width: float, colour: Colour) -> None:
        """A thick smooth line through the points."""
        self.line(smooth(points, closed=False, steps=4), width, colour)


def smooth(points: Points, *, closed: bool, steps: int = 6) -> Curve:
    """A Catmull-Rom curve through the points, [points * steps, 2] (an open one ends on the last point)."""
    knots = np.asarray(points, dtype=np.float64)
    before, after, beyond = (np.roll(knots, shift, axis=0) for shift in (1, -1, -2))
    if not closed:
        before[0], after[-1], beyond[-2:] = knots[0], knots[-1], knots[-1]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (knot[:, None, :] for knot in (before, knots, after, beyond))
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3)
    flat: Curve = curve.reshape(-1, 2)
    return flat if closed else flat[: (len(knots) - 1) * steps + 1]
