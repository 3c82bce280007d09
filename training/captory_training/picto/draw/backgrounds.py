"""The six backgrounds: a few tileable textures of each are painted once, then shifted and mirrored."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Texture = NDArray[np.floating]

NUM_VARIANTS = 12


def background(name: str, size_px: int, rng: np.random.Generator) -> Texture:
    """A fresh background, [size_px, size_px, 3] in 0..255."""
    tile = _tile(name, size_px, int(rng.integers(NUM_VARIANTS)))
    shift = tuple(int(value) for value in rng.integers(size_px, size=2))
    rolled = np.roll(tile, shift, axis=(0, 1))
    if rng.random() < 0.5:
        rolled = rolled[:, ::-1]
    tint = rng.normal(1.0, 0.02, size=3).astype(np.float32)
    return rolled * tint * _depth(name, size_px)


@cache
def grain(size_px: int, variant: int, smooth_px: float) -> Texture:
    """Tileable noise of unit deviation, [size_px, size_px]; `smooth_px` is its correlation length."""
    return _noise(size_px, variant, smooth_px, smooth_px)


@cache
def _tile(name: str, size_px: int, variant: int) -> Texture:
    tile = _PAINTERS[name](size_px, variant)
    clipped: Texture = np.clip(tile, 0, 255).astype(np.float32)
    return clipped


@cache
def _depth(name: str, size_px: int) -> Texture:
    """Brightness from top to bottom, [size_px, 1, 1]."""
    top, bottom = {"night": (0.8, 1.3), "brick": (1.0, 0.94)}.get(name, (1.06, 0.92))
    return np.linspace(top, bottom, size_px, dtype=np.float32)[:, None, None]


def _noise(size_px: int, variant: int, wide_px: float, tall_px: float) -> Texture:
    rng = np.random.default_rng([variant, size_px])
    frequency = np.fft.fftfreq(size_px) * size_px / 64
    envelope = np.exp(-20 * ((frequency[None, :] * wide_px) ** 2 + (frequency[:, None] * tall_px) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size_px, size_px))) * envelope).real
    noise -= noise.mean()
    unit: Texture = (noise / noise.std()).astype(np.float32)
    return unit


def _coloured(base: tuple[int, int, int], light: Texture) -> Texture:
    colours: Texture = np.asarray(base, dtype=np.float32) * (1 + light[..., None])
    return colours


def _grass(size_px: int, variant: int) -> Texture:
    blades = _noise(size_px, variant, 0.4, 1.6)
    patches = _noise(size_px, variant + 100, 5, 5)
    return _coloured((142, 190, 84), 0.11 * blades + 0.05 * patches)


def _sand(size_px: int, variant: int) -> Texture:
    x, y = _grid(size_px)
    ripples = np.sin(2 * np.pi * (5 * y + x) + 1.6 * _noise(size_px, variant, 6, 6))
    return _coloured((226, 194, 138), 0.05 * ripples + 0.035 * _noise(size_px, variant + 100, 0.3, 0.3))


def _sea(size_px: int, variant: int) -> Texture:
    x, y = _grid(size_px)
    waves = np.sin(2 * np.pi * 6 * y + 1.1 * np.sin(2 * np.pi * 3 * x) + 0.8 * _noise(size_px, variant, 8, 3))
    crests = np.clip(waves - 0.62, 0, 1) * 2.2
    water = _coloured((66, 170, 190), 0.07 * waves)
    foam: Texture = crests[..., None] * np.array([110, 70, 55])
    return water + foam


def _night(size_px: int, variant: int) -> Texture:
    sky = _coloured((30, 32, 74), 0.16 * _noise(size_px, variant, 9, 9))
    rng = np.random.default_rng([variant, size_px, 1])
    x, y = _grid(size_px)
    for star_x, star_y, glow in rng.random((22, 3)):
        distance = _wrapped(x - star_x) ** 2 + _wrapped(y - star_y) ** 2
        sky += (np.exp(-distance * 64**2 / (0.35 + 0.5 * glow)) * (110 + 140 * glow))[..., None]
    return sky


def _snow(size_px: int, variant: int) -> Texture:
    drifts = _noise(size_px, variant, 9, 4)
    sparkle: Texture = np.clip(_noise(size_px, variant + 100, 0.3, 0.3) - 1.8, 0, 1)
    pale = _coloured((212, 224, 240), 0.045 * drifts)
    return pale + 30 * sparkle[..., None]


def _brick(size_px: int, variant: int) -> Texture:
    x, y = _grid(size_px)
    row = np.floor(y * 8).astype(int)
    along = (x * 4 + 0.5 * (row % 2)) % 4
    tone = np.random.default_rng([variant, 2]).normal(0, 0.09, size=(8, 4))[row, np.floor(along).astype(int)]
    edge_px = np.minimum(np.minimum(along % 1, 1 - along % 1) * 16, np.minimum(y * 8 % 1, 1 - y * 8 % 1) * 8)
    mortar: Texture = np.clip(1.25 - edge_px, 0, 1)[..., None]
    bricks = _coloured((164, 98, 80), (tone + 0.05 * _noise(size_px, variant, 0.5, 0.5)).astype(np.float32))
    return bricks * (1 - mortar) + np.array([206, 196, 184]) * mortar


def _grid(size_px: int) -> tuple[Texture, Texture]:
    axis = ((np.arange(size_px) + 0.5) / size_px).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _wrapped(difference: Texture) -> Texture:
    return (difference + 0.5) % 1 - 0.5


_PAINTERS = {"grass": _grass, "sand": _sand, "sea": _sea, "night": _night, "snow": _snow, "brick": _brick}
