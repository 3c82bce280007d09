"""A vision-language model on vLLM as the captioner. Pictures travel inside the request: it never fetches one.

What is asked is modelled on the short and long captions of Segalis et al., arXiv 2310.16656; there the captioner was
trained for both, here an instruction takes the place of their prefixes.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from PIL import Image

from captory_engine import images
from captory_engine.cache import SingleFlight, content_key, once
from captory_engine.codecs import Codecs
from captory_engine.errors import BadModel, BadOutput
from captory_engine.info import ModelInfo
from captory_engine.items import Captioned
from captory_engine.prompts import clean_model_text
from captory_engine.stages import Share
from captory_engine.vllm.answers import Answer, read_chat
from captory_engine.vllm.server import Server
from captory_engine.vllm.writer import CHAT

MAX_SIDE_PX = 768  # what is larger is made smaller: a model of this kind takes more tokens for more pixels


class Telling(NamedTuple):
    """How a caption of one length is asked for."""

    instruction: str
    max_tokens: int


TELLINGS = {
    "short": Telling(
        "Write a caption for this picture: one plain English sentence of at most 15 words that says what is shown, how "
        "many there are, and where. Answer with the caption and nothing else.",
        48,
    ),
    "long": Telling(
        "Write a detailed caption for this picture: two or three plain English sentences of at most 60 words that name "
        "every object, with number, colour, size, position and what it does, then the background and the light. Say "
        "only what can be seen. Answer with the caption and nothing else.",
        144,
    ),
}


class VllmCaptioner:
    """A model on a vLLM server; greedy, and nothing is asked twice that is still known."""

    def __init__(self, server: Server, cache: SingleFlight[Captioned], codecs: Codecs, max_pixels: int) -> None:
        self._server = server
        self._cache = cache
        self._codecs = codecs
        self._limits = images.ImageLimits(max_pixels=max_pixels)

    async def captions(self, image: bytes, lengths: Sequence[str], share: Share) -> AsyncIterator[Captioned]:
        """One caption of each length; see `captory_engine.captioning.Captioner`."""
        digest: str = await self._codecs.run(_sha256, image)
        inline = once(lambda: self._codecs.run(self._inline, image))
        for length in lengths:
            yield await self._caption(digest, inline, length)

    async def check(self, image: bytes) -> None:
        """Raise what decoding raises."""
        await self._codecs.run(self._decode, image)

    async def _caption(self, digest: str, inline: Callable[[], Awaitable[str]], length: str) -> Captioned:
        async def compute() -> Captioned:
            answer = await _ask(self._server, await inline(), TELLINGS["long" if length == "long" else "short"])
            text = clean_model_text(answer.text)
            if not text:
                raise BadOutput("CAPTION_EMPTY", "The captioner said nothing of this picture.")
            return Captioned(text, length, answer.token_count)

        return await self._cache.get(content_key(digest, length), compute)

    def _inline(self, image: bytes) -> str:
        """Encoded bytes as a data URI of a picture that we have decoded; for a codec thread."""
        picture = self._decode(image)
        picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        return _data_uri(picture)

    def _decode(self, image: bytes) -> Image.Image:
        return images.decode_image(image, self._limits, min_side_px=MAX_SIDE_PX)


async def check_vision(server: Server) -> None:
    """Show the model a picture. Raises `BadModel` when it takes none."""
    try:
        await _ask(server, _data_uri(Image.new("RGB", (64, 64))), Telling(TELLINGS["short"].instruction, 1))
    except BadOutput as error:
        words = f"The model {server.model!r} of vLLM at {server.endpoint.address} takes no pictures."
        raise BadModel("VLLM_NO_VISION", words) from error


def captioner_info(server: Server) -> ModelInfo:
    """What captions: the model, and what it is asked."""
    digest = hashlib.sha256(f"{server.info.sha256} {TELLINGS!r}".encode()).hexdigest()
    return ModelInfo(digest, server.info.backend)


async def _ask(server: Server, picture: str, telling: Telling) -> Answer:
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": telling.instruction}]
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": telling.max_tokens,
        "temperature": 0.0,
    }
    return read_chat(await server.endpoint.post(CHAT, body))


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
