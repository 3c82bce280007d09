"""Images of every kind that a user may hand in, and the ways in which they break."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """A picture whose four corners differ, so that a wrong turn or crop shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, (rows * columns) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of `image` in a format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated_jpeg(orientation: int) -> bytes:
    """A JPEG that says that it must be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(), "JPEG", exif=exif, quality=95)


def deep_png() -> bytes:
    """A grey PNG of 16 bits."""
    return encoded(Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257), "PNG")


def corpus() -> dict[str, bytes]:
    """One sound file of each kind."""
    image, turned = picture(), picture().rotate(180)
    grey, many = image.convert("L"), {"save_all": True, "append_images": [turned, image]}
    return {
        "png": encoded(image, "PNG"),
        "png-grey": encoded(grey, "PNG"),
        "png-bit": encoded(image.convert("1"), "PNG"),
        "png-palette": encoded(image.quantize(64), "PNG"),
        "png-alpha": encoded(image.convert("RGBA"), "PNG"),
        "png-grey-alpha": encoded(image.convert("LA"), "PNG"),
        "png-16-bit": deep_png(),
        "png-animated": encoded(image, "PNG", **many),
        "jpeg": encoded(image, "JPEG", quality=95),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True),
        "jpeg-grey": encoded(grey, "JPEG"),
        "jpeg-cmyk": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "jpeg-rotated": rotated_jpeg(6),
        "gif": encoded(image, "GIF"),
        "gif-animated": encoded(image, "GIF", **many),
        "bmp": encoded(image, "BMP"),
        "webp": encoded(image, "WEBP"),
        "webp-lossless": encoded(image, "WEBP", lossless=True),
        "webp-animated": encoded(image, "WEBP", lossless=True, **many),
        "tiff": encoded(image, "TIFF"),
        "tiff-lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-float": encoded(Image.fromarray(np.asarray(grey, dtype=np.float32) / 255), "TIFF"),
        "tiff-32-bit": encoded(Image.fromarray(np.asarray(grey, dtype=np.int32) << 23), "TIFF"),
        "tiff-cmyk": encoded(image.convert("CMYK"), "TIFF"),
    }


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more pixels than its bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def png_text_bomb() -> bytes:
    """A PNG with a compressed text chunk that unfolds to 200 MB."""
    header = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush()
    zipped = _chunk(b"zTXt", b"k\x00\x00" + text)
    pixels = _chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + zipped + pixels + _chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that promise huge images, in several formats."""
    side = 60_000
    gif = bytearray(encoded(picture().convert("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    canvas = (16_382).to_bytes(3, "little") * 2
    webp = bytearray(encoded(picture(), "WEBP", save_all=True, append_images=[picture().rotate(180)]))
    webp[24:30] = canvas
    return {
        "png": png_bomb(side, side),
        "png-long": png_bomb(1, 65_535),
        "png-wide": png_bomb(2**31 - 1, 1),
        "png-9k": png_bomb(9_000, 9_000),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "jpeg": bytes(jpeg),
        "webp": bytes(webp),
    }
