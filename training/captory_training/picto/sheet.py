"""A contact sheet of sampled scenes, ordered by kind, with captions under the pictures if asked."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from captory_training.picto.captions import full_caption
from captory_training.picto.kinds import KIND_BY_KEY, KINDS
from captory_training.picto.render import render
from captory_training.picto.scene import Scene, sample_scene

CELL_PX = 192
GAP_PX = 8
CAPTION_PX = 64
FONT_PX = 12
LINE_CHARACTERS = 30
PAPER = (250, 250, 248)
TEXT = (40, 40, 48)


def sample_by_kind(seed: int, num_scenes: int) -> list[Scene]:
    """Scenes whose kinds take turns, then sorted by kind: the first with a matching kind from seed `seed` on."""
    seeds = count(seed)
    scenes = [_next_of_kind(KINDS[index % len(KINDS)].key, seeds) for index in range(num_scenes)]
    order = [kind.key for kind in KINDS]
    return sorted(scenes, key=lambda scene: order.index(scene.kind))


def contact_sheet(scenes: Sequence[Scene], columns: int, *, captions: bool) -> Image.Image:
    """The scenes row by row, each picture enlarged to CELL_PX."""
    width, height = CELL_PX + GAP_PX, CELL_PX + GAP_PX + (CAPTION_PX if captions else 0)
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), PAPER)
    for index, scene in enumerate(scenes):
        corner = (GAP_PX + index % columns * width, GAP_PX + index // columns * height)
        sheet.paste(Image.fromarray(render(scene)).resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST), corner)
        if captions:
            _write_caption(sheet, scene, (corner[0], corner[1] + CELL_PX + 2))
    return sheet


def write_class_folders(scenes: Sequence[Scene], folder: Path) -> None:
    """A data set of class folders: `<class name>/<kind>-<seed>.png`; a name with two looks is one folder."""
    for scene in scenes:
        place = folder / KIND_BY_KEY[scene.kind].class_name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(scene)).save(place / f"{scene.kind}-{scene.seed:06d}.png", optimize=True)


def _next_of_kind(kind: str, seeds: Iterator[int]) -> Scene:
    return next(scene for scene in map(sample_scene, seeds) if scene.kind == kind)


def _write_caption(sheet: Image.Image, scene: Scene, corner: tuple[int, int]) -> None:
    lines = textwrap.fill(full_caption(scene), LINE_CHARACTERS, max_lines=4, placeholder=" ...")
    ImageDraw.Draw(sheet).multiline_text(corner, lines, fill=TEXT, font=ImageFont.load_default(FONT_PX), spacing=2)
