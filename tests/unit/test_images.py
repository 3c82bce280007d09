"""Untrusted images: every kind is read or refused with fixed words, in bounded memory."""

import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from image_corpus import bombs, corpus, encoded, picture, png_text_bomb, rotated_jpeg
from PIL import Image

from captory_engine.errors import BadOutput, InvalidInput
from captory_engine.images import (
    REASONS,
    SYNTHETIC,
    ImageLimits,
    decode_image,
    encode_image,
    latents_to_uint8,
    pixel_sha256,
    to_pixel_values,
)
from captory_engine.items import ImageFormat

# pytest sets the filters of images.py aside
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

CORPUS = corpus()
EXACT = {
    "png",
    "png-alpha",
    "png-animated",
    "bmp",
    "webp-lossless",
    "webp-animated",
    "tiff",
    "tiff-lzw",
    "tiff-deflate",
}


def reason_of(data: bytes, limits: ImageLimits | None = None) -> str:
    """Why `data` is refused, having checked that its words are those of the table; empty when it is read."""
    refused = None
    try:
        decode_image(data, limits)
    except InvalidInput as error:
        refused = error
    assert refused is None or refused.message == REASONS[refused.reason]
    return refused.reason if refused else ""


@pytest.mark.parametrize("name", CORPUS)
def test_every_kind_is_read_as_rgb(name: str) -> None:
    image = decode_image(CORPUS[name])
    want = picture().rotate(-90, expand=True) if name == "jpeg-rotated" else picture()
    assert (image.mode, image.size) == ("RGB", want.size)
    if name in EXACT:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(want))
    greys = [np.asarray(each.convert("L")).ravel() for each in (image, want)]
    assert np.corrcoef(greys)[0, 1] > 0.2  # dithered black and white is the furthest


@pytest.mark.parametrize("name", ["png-16-bit", "tiff-float", "tiff-32-bit"])
def test_deep_images_keep_their_tones(name: str) -> None:
    want = np.asarray(picture().convert("L")).astype(int)
    assert np.abs(np.asarray(decode_image(CORPUS[name]))[..., 0] - want).max() <= 1


@pytest.mark.parametrize("name", CORPUS)
def test_cut_files_are_refused_or_right(name: str) -> None:
    data, whole = CORPUS[name], np.asarray(decode_image(CORPUS[name]))
    cuts = {*range(0, len(data), max(1, len(data) // 60)), *range(max(0, len(data) - 20), len(data))}
    for cut in cuts:
        if not reason_of(data[:cut]):
            np.testing.assert_array_equal(np.asarray(decode_image(data[:cut])), whole)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_a_file_cut_in_half_is_called_truncated(name: str) -> None:
    assert reason_of(CORPUS[name][: len(CORPUS[name]) // 2]) == "IMAGE_TRUNCATED"


@pytest.mark.parametrize("name", CORPUS)
def test_flipped_bytes_never_raise_anything_else(name: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        data = bytearray(CORPUS[name])
        for position in rng.integers(0, min(len(data), 600), 4):
            data[position] = rng.integers(256)
        reason_of(bytes(data), ImageLimits(max_pixels=1_000_000))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"just words in a file named .jpg", "IMAGE_FORMAT"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_FORMAT"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "IMAGE_FORMAT"),
        (b"%PDF-1.7", "IMAGE_FORMAT"),
        (b"\x00" * 100, "IMAGE_FORMAT"),
        (encoded(picture(), "PPM"), "IMAGE_FORMAT"),
        (encoded(picture(), "ICO"), "IMAGE_FORMAT"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "IMAGE_FORMAT"),
        (b"BMW is a maker of cars", "IMAGE_TRUNCATED"),
        (b"\xff\xd8\xff" + b"\x00" * 50, "IMAGE_CORRUPT"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_their_header(name: str) -> None:
    data = bombs()[name]
    tracemalloc.start()
    try:
        assert reason_of(data) == "IMAGE_TOO_LARGE"
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_text_bombs_are_refused() -> None:
    assert reason_of(png_text_bomb()) == "IMAGE_CORRUPT"


def test_limits_hold_at_the_pixel() -> None:
    data = encoded(Image.new("L", (100, 50)), "PNG")
    assert reason_of(data, ImageLimits(max_pixels=5000, max_side_px=100)) == ""
    assert reason_of(data, ImageLimits(max_pixels=4999)) == "IMAGE_TOO_LARGE"
    assert reason_of(data, ImageLimits(max_side_px=99)) == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("size", [(1, 1), (1, 16_384), (16_384, 1)])
def test_extreme_shapes_become_pixel_values(size: tuple[int, int]) -> None:
    image = decode_image(encoded(Image.new("RGB", size, (255, 0, 0)), "PNG"))
    values = to_pixel_values(image, 8, [0, 0, 0], [1, 1, 1])
    assert values[:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    flat = decode_image(rotated_jpeg(1))
    want = flat.transpose(turns[orientation]) if orientation in turns else flat
    np.testing.assert_array_equal(np.asarray(decode_image(rotated_jpeg(orientation))), np.asarray(want))


def test_broken_exif_turns_nothing() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode_image(data).size == picture().size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image = clear.quantize(4) if mode == "P" else clear.convert(mode)
    assert decode_image(encoded(image, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_a_large_jpeg_may_come_out_smaller_but_never_below_twice_the_size_asked_for() -> None:
    data = encoded(picture(1600, 1200), "JPEG")
    image = decode_image(data, min_side_px=64)
    assert min(image.size) >= 128
    assert max(image.size) < 1600
    assert decode_image(CORPUS["jpeg"], min_side_px=64).size == picture().size


def test_threads_do_not_disturb_each_other() -> None:
    names = [*CORPUS] * 8
    with ThreadPoolExecutor(8) as pool:
        hashes = pool.map(lambda name: pixel_sha256(np.asarray(decode_image(CORPUS[name]))), names)
    assert len({*zip(names, hashes, strict=True)}) == len(CORPUS)


def test_pixel_values_are_the_centre_square_normalised() -> None:
    image = Image.new("RGB", (30, 10), (0, 0, 255))
    image.paste((255, 127, 0), (10, 0, 20, 10))
    values = to_pixel_values(image, 6, [0.5, 0.5, 0.5], [0.5, 0.25, 0.5])
    assert (values.shape, values.dtype, values.flags.c_contiguous) == ((3, 6, 6), np.float32, True)
    np.testing.assert_allclose(values[:, 3, 3], [1, (127 / 255 - 0.5) / 0.25, -1], atol=1e-6)


def test_stretched_pixel_values_show_all_of_the_image() -> None:
    image = Image.new("RGB", (30, 10), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    values = to_pixel_values(image, 9, [0] * 3, [1] * 3, stretch=True, resample="bilinear")
    assert values[0, 4, 0] == 1
    assert values[0, 4, -1] == 0
    assert to_pixel_values(image, 9, [0] * 3, [1] * 3)[0, 4, 1:].max() == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BlipImageProcessor", {}),
        ("ViTImageProcessor", {}),
        ("ViTImageProcessor", {"resample": 1, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}),
        ("BlipImageProcessor", {"do_normalize": False}),
    ],
)
def test_pixel_values_are_those_of_the_checkpoints_image_processor(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from captory_export.captioners.captioner import pixels_of
    from captory_export.checkpoints import Checkpoint

    image = picture(40, 30)
    processor = getattr(transformers, name)(size={"height": 24, "width": 24}, **settings)
    processor.save_pretrained(tmp_path)
    told = pixels_of(Checkpoint(tmp_path, "checkpoint", "", ""), 24, (), (), "")
    values = to_pixel_values(image, told.size_px, told.mean, told.std, stretch=told.stretch, resample=told.resample)
    [wanted] = processor(image, return_tensors="np").pixel_values
    np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-6)  # both by Pillow; a grey level is 0.004 or more


def test_samples_become_pixels_and_never_from_what_is_not_finite() -> None:
    sample = np.array([-2, -1, 0, 1, 2, 0.5], np.float32).reshape(3, 1, 2)
    assert latents_to_uint8(sample).tolist() == [[[0, 128, 255], [0, 255, 191]]]
    for value in (np.nan, np.inf, -np.inf):
        sample[1, 0, 1] = value
        with pytest.raises(BadOutput) as error:
            latents_to_uint8(sample)
        assert error.value.reason == "NON_FINITE"


@pytest.mark.parametrize("kind", list(ImageFormat))
@pytest.mark.parametrize("provenance", ["", '{"prompt": "<a> & \\"b\\" ü"}', "\x00\ud800 control"])
def test_images_are_lossless_repeatable_and_marked_as_synthetic(kind: ImageFormat, provenance: str) -> None:
    pixels = np.asarray(picture())
    data = encode_image(pixels, kind, provenance)
    assert data == encode_image(pixels.copy(), kind, provenance)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        xmp = image.info["xmp"]
    root = ElementTree.fromstring(xmp.decode())
    description = root.find(".//{*}Description")
    assert description is not None
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == SYNTHETIC
    source = description.findtext("{http://purl.org/dc/elements/1.1/}source") or ""
    assert source == provenance.replace("\x00", "").replace("\ud800", "")


def test_pixel_hash_is_that_of_the_decoded_image() -> None:
    pixels = np.asarray(picture())
    hashes = {pixel_sha256(np.asarray(decode_image(encode_image(pixels, kind)))) for kind in ImageFormat}
    assert hashes == {pixel_sha256(pixels)}
    assert pixel_sha256(pixels[::-1]) not in hashes
