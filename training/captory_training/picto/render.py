"""From a scene to its picture: objects are drawn at four times the size, then outlined, lit and composed."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captory_training.picto.draw import animals, faces, things
from captory_training.picto.draw.backgrounds import NUM_VARIANTS, background, grain
from captory_training.picto.draw.palette import INK, Tints, tints
from captory_training.picto.draw.pen import Pen, Pose
from captory_training.picto.layout import NOMINAL_PX, Spot, place
from captory_training.picto.lighting import Floats, shading, shadow, side_light
from captory_training.picto.scene import Group, Scene

Bytes = NDArray[np.uint8]

OVERSAMPLING = 4
ARTISTS: dict[str, Callable[[Pen, Tints], None]] = {
    "crane_bird": animals.crane_bird,
    "crane_machine": things.crane_machine,
    "bat_animal": animals.bat_animal,
    "bat_club": things.bat_club,
    "mouse_animal": animals.mouse_animal,
    "mouse_device": things.mouse_device,
    "bass_fish": animals.bass_fish,
    "bass_guitar": things.bass_guitar,
    "house": things.house,
    "tree": things.tree,
    "boat": things.boat,
    "mug": things.mug,
}
MAX_TILT_DEG = 12.0
UPRIGHT_TILT_DEG = 5.0
UPRIGHT_KINDS = frozenset({"face", "house", "tree", "crane_machine"})


def render(scene: Scene, size_px: int = NOMINAL_PX) -> Bytes:
    """The picture of a scene, uint8 [size_px, size_px, 3]; a pure function of its arguments."""
    rng = np.random.Generator(np.random.PCG64([scene.seed, 1]))
    spots = place(scene, rng)
    colour, solid, mask = _draw_objects(scene, spots, size_px, rng)
    picture = background(scene.background, size_px, rng) * side_light(scene.light, size_px)
    picture *= 1 - shadow(scene, spots, mask, size_px)[..., None]
    shade = shading(scene, spots, solid, size_px) * (1 + 0.025 * _texture(size_px, rng))
    coverage = mask[..., None]
    picture += coverage * (colour * shade[..., None] - picture)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _draw_objects(
    scene: Scene, spots: list[list[Spot]], size_px: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Colour [s, s, 3] in 0..255, the objects' coverage [s, s] in 0..1, and the same with their outline."""
    side = size_px * OVERSAMPLING
    canvas = Image.new("RGBX", (side, side), (*INK, 0))
    for group, group_spots in zip(scene.groups, spots, strict=True):
        paint = tints(group.colour, rng)
        for spot in group_spots:
            _draw_object(canvas, group, paint, spot, rng)
    outlined = Image.fromarray(_grow(np.asarray(canvas.getchannel("X")), round(3 * size_px / NOMINAL_PX)))
    pixels, mask = (np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) for image in (canvas, outlined))
    return pixels[..., :3], pixels[..., 3] / 255, mask / 255


def _draw_object(canvas: Image.Image, group: Group, paint: Tints, spot: Spot, rng: np.random.Generator) -> None:
    tilt_deg = UPRIGHT_TILT_DEG if group.kind in UPRIGHT_KINDS else MAX_TILT_DEG
    pose = Pose(
        angle_rad=float(np.radians(rng.uniform(-tilt_deg, tilt_deg))),
        flip=bool(rng.random() < 0.5),
        stretch=float(rng.uniform(0.95, 1.05)),
    )
    scale = canvas.width / NOMINAL_PX
    pen = Pen(canvas, (spot.x * scale, spot.y * scale), spot.radius * scale, pose)
    if group.face is not None:
        faces.face(pen, paint, group.face)
    else:
        ARTISTS[group.kind](pen, paint)


def _grow(mask: Bytes, steps: int) -> Bytes:
    """The mask dilated by about `steps` pixels, alternately by a cross and a square."""
    for step in range(steps):
        grown = mask.copy()
        _spread(mask, grown)
        _spread((mask if step % 2 == 0 else grown.copy()).T, grown.T)
        mask = grown
    return mask


def _spread(mask: Bytes, grown: Bytes) -> None:
    """Raises `grown` to the mask's neighbours above and below."""
    np.maximum(grown[1:], mask[:-1], out=grown[1:])
    np.maximum(grown[:-1], mask[1:], out=grown[:-1])


def _texture(size_px: int, rng: np.random.Generator) -> Floats:
    return grain(size_px, int(rng.integers(NUM_VARIANTS)), 0.8)
