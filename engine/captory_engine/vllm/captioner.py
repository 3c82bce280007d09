"""A vision-language model on vLLM as the captioner. Pictures travel inside the request: it never fetches one.

What is asked is modelled on the short and long captions of Segalis et al., arXiv 2310.16656; there the captioner was
trained for both, here an instruction takes the place of their prefixes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from PIL import Image

from captory_engine import images
from captory_engine.cache import SingleFlight, content_key
from captory_engine.captioning import sha256_of
from captory_engine.codecs import Codecs
from captory_engine.errors import BadModel, BadOutput
from captory_engine.info import ModelInfo
from captory_engine.items import Captioned
from captory_engine.prompts import is_latin, plain_words
from captory_engine.stages import Share
from captory_engine.vllm.answers import read_chat
from captory_engine.vllm.endpoint import CHAT
from captory_engine.vllm.server import Server

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
        digest: str = await self._codecs.run(sha256_of, image)
        for length in lengths:
            yield await self._caption(digest, image, length, share)

    async def check(self, image: bytes) -> None:
        """Raise what decoding raises."""
        await self._codecs.run(self._decode, image)

    @property
    def answers(self) -> bool:
        """Whether its server does."""
        return self._server.endpoint.answers

    async def _caption(self, digest: str, image: bytes, length: str, share: Share) -> Captioned:
        telling = TELLINGS[length]

        async def compute() -> Captioned:
            answer = read_chat(await self._server.endpoint.post_made(CHAT, make, share.work_class))
            return Captioned(_plain(answer.text), length, answer.token_count)

        async def make() -> bytes:
            body: bytes = await self._codecs.run(self._body, image, telling)
            return body

        return await self._cache.get(content_key(digest, length), compute)

    def _body(self, image: bytes, telling: Telling) -> bytes:
        """The request that asks for one caption of encoded bytes; for a codec thread."""
        picture = self._decode(image)
        picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        return json.dumps(_asked(self._server, picture, telling)).encode()

    def _decode(self, image: bytes) -> Image.Image:
        return images.decode_image(image, self._limits, min_side_px=MAX_SIDE_PX)


async def check_vision(server: Server) -> None:
    """Show the model a picture. Raises `BadModel` when it takes none."""
    look = _asked(server, Image.new("RGB", (64, 64)), Telling(TELLINGS["short"].instruction, 1))
    try:
        read_chat(await server.endpoint.post(CHAT, look))
    except BadOutput as error:
        words = f"The model {server.model!r} of vLLM at {server.endpoint.address} takes no pictures."
        raise BadModel("VLLM_NO_VISION", words) from error


def captioner_info(server: Server) -> ModelInfo:
    """What captions: the model, and what it is asked."""
    digest = hashlib.sha256(f"{server.info.sha256} {TELLINGS!r}".encode()).hexdigest()
    return ModelInfo(digest, server.info.backend)


def _asked(server: Server, picture: Image.Image, telling: Telling) -> dict[str, Any]:
    url = {"url": _data_uri(picture)}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": telling.instruction}]
    return {
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": telling.max_tokens,
        "temperature": 0.0,
    }


def _plain(text: str) -> str:
    """A model's words as a caption. Raises `BadOutput` when there are none, or in no language of the painter's."""
    words = plain_words(text)
    if not words:
        raise BadOutput("CAPTION_EMPTY", "The captioner said nothing of this picture.")
    if not is_latin(words):
        raise BadOutput("CAPTION_LANGUAGE", "The captioner's words are not in Latin letters.")
    return words


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
