"""A captioner as the pipeline asks it, and the one that runs on the own device: decode, look, say."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray
from PIL import Image

from captory_engine import family as families
from captory_engine import images
from captory_engine.cache import SingleFlight, content_key, once
from captory_engine.codecs import Codecs
from captory_engine.device import Device
from captory_engine.engines.single_step import GraphTask
from captory_engine.engines.token_decoder import TokenTask
from captory_engine.items import Captioned
from captory_engine.prompts import clean_model_text
from captory_engine.stages import Share
from captory_engine.tokenizer import Tokenizer

Context = Mapping[str, NDArray[Any]]
HASHED_AT_ONCE_BYTES = 32 << 10  # sooner done than given to a thread


class Captioner(Protocol):
    """Says what encoded image bytes show."""

    def captions(self, image: bytes, lengths: Sequence[str], share: Share) -> AsyncIterator[Captioned]:
        """One caption of each length, "short" or "long". Raises `InvalidInput` for an image that cannot be read."""
        ...

    async def check(self, image: bytes) -> None:
        """Raise what `captions` would for an image that cannot be read."""
        ...

    @property
    def answers(self) -> bool:
        """Whether it can be asked now; one elsewhere may be away."""
        ...


class EmbeddedCaptioner:
    """Vision encoder, then token decoding with a cache (BLIP: Li et al. 2022, arXiv 2201.12086)."""

    def __init__(
        self,
        device: Device,
        spec: families.Captioner,
        tokenizer: Tokenizer,
        cache: SingleFlight[Captioned],
        codecs: Codecs,
        max_pixels: int,
    ) -> None:
        self._device = device
        self._spec = spec
        self._tokenizer = tokenizer
        self._cache = cache
        self._codecs = codecs
        self._limits = images.ImageLimits(max_pixels=max_pixels)

    async def captions(self, image: bytes, lengths: Sequence[str], share: Share) -> AsyncIterator[Captioned]:
        """One caption of each length; the vision encoder sees the image once, if at all."""
        digest = await self._digest(image)
        context = once(lambda: self._look(image, share))
        for length in lengths:
            yield await self._caption(digest, context, length, share)

    async def check(self, image: bytes) -> None:
        """Raise what decoding raises."""
        await self._codecs.run(self._decode, image)

    @property
    def answers(self) -> bool:
        """It is here."""
        return True

    async def _caption(
        self, digest: str, context: Callable[[], Awaitable[Context]], length: str, share: Share
    ) -> Captioned:
        """The caption of the image with this digest; `context` awaits to what `_look` gave for it."""

        async def compute() -> Captioned:
            prefix = self._spec.prefixes["long" if length == "long" else "short"]
            decoding = TokenTask(prefix, self._spec.max_new_tokens, context=await context(), exact=share.exact)
            tokens = await self._device.submit("caption", decoding, share.work_class)
            return Captioned(clean_model_text(self._tokenizer.decode(tokens)), length, len(tokens))

        return await self._cache.get(content_key(digest, length, str(share.exact)), compute)

    async def _look(self, image: bytes, share: Share) -> Context:
        """What the vision encoder gives the decoder for one image."""
        pixel_values = await self._codecs.run(self._pixel_values, image)
        context: Context = await self._device.submit(
            "vision", GraphTask({"pixel_values": pixel_values}, share.exact), share.work_class
        )
        return context

    def _pixel_values(self, image: bytes) -> NDArray[Any]:
        """Encoded bytes as the vision encoder takes them; for a codec thread."""
        return pixel_values(self._spec, self._decode(image))

    def _decode(self, image: bytes) -> Any:
        """Encoded bytes to an RGB image, as large as the captioner needs it; for a codec thread."""
        return images.decode_image(image, self._limits, min_side_px=self._spec.image_size_px)

    async def _digest(self, image: bytes) -> str:
        """The name of an image by its content."""
        if len(image) <= HASHED_AT_ONCE_BYTES:
            return sha256_of(image)
        digest: str = await self._codecs.run(sha256_of, image)
        return digest


def pixel_values(spec: families.Captioner, image: Image.Image) -> NDArray[Any]:
    """An RGB image as the vision encoder takes it, [3, S, S], float32."""
    return images.to_pixel_values(
        image,
        spec.image_size_px,
        spec.image_mean,
        spec.image_std,
        stretch=spec.stretch,
        resample=spec.resample,
    )


def sha256_of(data: bytes) -> str:
    """The name of bytes by their content."""
    return hashlib.sha256(data).hexdigest()
