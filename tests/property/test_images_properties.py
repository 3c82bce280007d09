"""Images from any bytes, and bytes from any pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from captory_engine.errors import BadOutput, InvalidInput
from captory_engine.images import (
    REASONS,
    ImageLimits,
    decode_image,
    encode_image,
    latents_to_uint8,
    pixel_sha256,
    to_pixel_values,
)
from captory_engine.items import ImageFormat

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

SIGNATURES = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*", b"RIFF0000WEBPVP8X"]
PIXELS = npst.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


@settings(max_examples=300)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
def test_any_bytes_are_an_image_or_refused_with_fixed_words(signature: bytes, rest: bytes) -> None:
    refused, mode = None, "RGB"
    try:
        mode = decode_image(signature + rest, ImageLimits(max_pixels=1_000_000)).mode
    except InvalidInput as error:
        refused = error
    assert mode == "RGB"
    assert refused is None or refused.message == REASONS[refused.reason]


@given(PIXELS, st.sampled_from(ImageFormat), st.text(st.characters(exclude_categories=()), max_size=50))
def test_pixels_come_back_as_they_were(pixels: np.ndarray, kind: ImageFormat, provenance: str) -> None:
    data = encode_image(pixels, kind, provenance)
    assert pixel_sha256(np.asarray(decode_image(data))) == pixel_sha256(pixels)


@given(PIXELS, st.integers(1, 16))
def test_pixel_values_stay_within_the_range_of_pixels(pixels: np.ndarray, size_px: int) -> None:
    image = decode_image(encode_image(pixels, ImageFormat.PNG))
    values = to_pixel_values(image, size_px, [0.5] * 3, [0.5] * 3)
    assert values.shape == (3, size_px, size_px)
    assert values.dtype == np.float32
    assert np.abs(values).max() <= 1


@given(npst.arrays(np.float32, (3, 2, 5), elements=st.floats(width=32)))
def test_a_sample_is_finite_or_never_an_image(sample: np.ndarray) -> None:
    if np.isfinite(sample).all():
        assert latents_to_uint8(sample).shape == (2, 5, 3)
    else:
        with pytest.raises(BadOutput):
            latents_to_uint8(sample)
