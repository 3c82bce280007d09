"""Small pictures for the report. Input is untrusted: dimensions before pixels, and any trouble is no picture."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
SOURCE_SIDE_PX = 160
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
WHITE = (255, 255, 255)


def thumbnail(data: bytes, side_px: int = SOURCE_SIDE_PX) -> bytes | None:
    """A JPEG of at most `side_px` on the longer side, or None if the data is no usable image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _shrunk(data, side_px)
    except Exception:  # a decoder may raise anything on hostile bytes, and the report can do without
        return None


def _shrunk(data: bytes, side_px: int) -> bytes | None:
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        opened.draft("RGB", (side_px * 2, side_px * 2))  # JPEG decodes at a smaller scale
        upright = ImageOps.exif_transpose(opened)
        flat = _opaque(upright)
    flat.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit: keep the high byte
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*WHITE, 255)), layer).convert("RGB")
