"""An evaluation to look at: true picture, the captioner's words for it, and what was painted from the full caption."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captory_training.evaluation import Evaluation, Pixels
from captory_training.picto.captions import full_caption

CELL_PX = 160
TEXT_PX = 300
GAP_PX = 10
FONT_PX = 13
LINE_CHARACTERS = 40
PAPER = (250, 250, 248)
INK = (40, 40, 48)
FAINT = (120, 120, 128)
MISSING = (225, 225, 225)


def evaluation_sheet(made: Evaluation, max_rows: int, columns: int = 2) -> Image.Image:
    """The first `max_rows` x `columns` scenes."""
    num = min(len(made.scenes), max_rows * columns)
    width, height = 2 * CELL_PX + TEXT_PX + 3 * GAP_PX, CELL_PX + GAP_PX
    rows = -(-num // columns)
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), PAPER)
    for index in range(num):
        left, top = GAP_PX + index % columns * width, GAP_PX + index // columns * height
        sheet.paste(_enlarged(made.pictures[index]), (left, top))
        _write(sheet, made, index, (left + CELL_PX + GAP_PX, top))
        sheet.paste(_enlarged(made.paintings[index]), (left + CELL_PX + TEXT_PX + 2 * GAP_PX, top))
    return sheet


def _enlarged(pixels: Pixels | None) -> Image.Image:
    if pixels is None:
        return Image.new("RGB", (CELL_PX, CELL_PX), MISSING)
    return Image.fromarray(np.asarray(pixels)).resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC)


def _write(sheet: Image.Image, made: Evaluation, index: int, corner: tuple[int, int]) -> None:
    """The captioner's words for the picture on the left, then the prompt of the one on the right."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    left, top = corner
    words = (("captioner:", FAINT), (made.captions[index] or "no caption", INK))
    prompt = (("prompt:", FAINT), (full_caption(made.scenes[index]), INK))
    for text, colour in (*words, *prompt):
        lines = textwrap.wrap(text, LINE_CHARACTERS, max_lines=4, placeholder=" …")
        pen.multiline_text((left, top), "\n".join(lines), fill=colour, font=font, spacing=2)
        top += len(lines) * (FONT_PX + 5) + 2
