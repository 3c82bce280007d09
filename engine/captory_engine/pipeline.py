"""The life of an item, in the order in which it is lived: caption, prompt, encode text, denoise, finish, deliver."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from captory_engine import images
from captory_engine.cache import once
from captory_engine.codecs import Codecs
from captory_engine.device import Device
from captory_engine.errors import CaptoryError, Expired, Unavailable
from captory_engine.info import FamilyInfo
from captory_engine.items import (
    Captioned,
    Done,
    Event,
    Failed,
    Item,
    Painted,
    Prompted,
    Provenance,
    Sample,
    Stage,
)
from captory_engine.prompts import PLANS, TokenPolicy, WriterKind, build_prompt, caption_length, clean_model_text
from captory_engine.sessions.base import Session
from captory_engine.stages import Captioner, Context, Painter, Share, Writer, pixel_values
from captory_engine.tokenizer import PromptTokens

log = logging.getLogger(__name__)

HASHED_AT_ONCE_BYTES = 32 << 10  # sooner done than given to a thread


class Pipeline:
    """All stages over one device. Items ride together wherever they can; each is alone in its errors."""

    def __init__(
        self,
        info: FamilyInfo,
        device: Device,
        captioner: Captioner,
        writer: Writer | None,
        painter: Painter,
        sessions: Sequence[Session] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.device = device
        self._captioner = captioner
        self._writer = writer
        self._painter = painter
        self._sessions = sessions
        self._clock = clock
        self._models = {name: model.sha256 for name, model in info.models.items()}
        self._codecs = Codecs()
        self._loop = asyncio.create_task(device.serve(), name="captory-device")
        self._loop.add_done_callback(self._loop_ended)
        self._num_items = 0

    @property
    def healthy(self) -> bool:
        """Whether the device's loop runs."""
        return not self._loop.done()

    @property
    def num_items(self) -> int:
        """Items in flight."""
        return self._num_items

    async def live(self, item: Item, emit: Callable[[Event], object]) -> None:
        """Live the item's life in the caller's task, which may be cancelled; `emit` takes its events, `Done` last.

        Raises a `CaptoryError` for what concerns the whole item; what concerns one image is a `Failed` event.
        """
        self._num_items += 1
        try:
            await _Life(self, item, emit).live()
        finally:
            self._num_items -= 1

    async def run(self, item: Item) -> AsyncGenerator[Event, None]:
        """The events of `live`, one by one. Leaving the iterator cancels the item."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        life = asyncio.create_task(self.live(item, events.put_nowait), name=f"captory-item-{item.id}")
        life.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await life
        finally:
            life.cancel()
            await asyncio.wait([life])

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        if not loop.cancelled() and (error := loop.exception()) is not None:
            log.critical("the device's loop has ended", exc_info=error)
            self.device.fail(Unavailable("DEVICE_LOST", "the device's loop has ended"))

    async def close(self) -> None:
        """Stop the device and free its threads."""
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        await self.device.close()
        self._codecs.close()
        for session in self._sessions:
            session.close()

    # The stages, for one life.

    async def captions(self, image: bytes, lengths: Sequence[str], share: Share) -> AsyncIterator[Captioned]:
        """One caption of each length for encoded image bytes; the vision encoder sees them once, if at all."""
        digest = await self._digest(image)
        context = once(lambda: self._look(image, share))
        for length in lengths:
            yield await self._captioner.caption(digest, context, length, share)

    async def check(self, image: bytes) -> None:
        """Raise what decoding raises."""
        await self._codecs.run(self._decode, image)

    async def _digest(self, image: bytes) -> str:
        """The name of an image by its content."""
        if len(image) <= HASHED_AT_ONCE_BYTES:
            return _sha256(image)
        digest: str = await self._codecs.run(_sha256, image)
        return digest

    async def _look(self, image: bytes, share: Share) -> Context:
        spec = self._captioner.spec

        def decode() -> Any:
            return pixel_values(spec, self._decode(image))

        return await self._captioner.look(await self._codecs.run(decode), share)

    def _decode(self, image: bytes) -> Any:
        """Encoded bytes to an RGB image, as large as the captioner needs it; for a codec thread."""
        limits = images.ImageLimits(max_pixels=self.info.limits.max_image_pixels)
        return images.decode_image(image, limits, min_side_px=self._captioner.spec.image_size_px)

    async def write(self, item: Item, sample: Sample, caption: str) -> tuple[str, str]:
        """One prompt and who wrote it: template, model or fallback."""
        if PLANS[item.mode].writer is WriterKind.TEMPLATE or self._writer is None:
            return build_prompt(item.mode, item.class_name, caption), "template"
        rewritten = await self._writer.rewrite(caption, sample.seed, Share.of(item.parameters))
        prompt = build_prompt(item.mode, item.class_name, rewritten.text)
        return prompt, "model" if rewritten.accepted else "fallback"

    def tokenize(self, prompt: str, policy: TokenPolicy) -> PromptTokens:
        """The prompt as the painter's text encoder takes it."""
        return self._painter.tokenizer.encode(prompt, policy)

    async def paint(self, item: Item, sample: Sample, words: _Words) -> Painted:
        """One finished image from a prompt within the token budget."""
        pixels = await self._painter.paint(words.prompt, sample, item.parameters)

        def finish() -> tuple[bytes, str]:
            array = images.latents_to_uint8(pixels)
            return images.encode_image(array, item.parameters.format), images.pixel_sha256(array)

        data, digest = await self._codecs.run(finish)
        return Painted(data, self._provenance(item, sample, words, digest))

    def _provenance(self, item: Item, sample: Sample, words: _Words, pixel_sha256: str) -> Provenance:
        return Provenance(
            caption=words.caption,
            prompt=words.prompt,
            class_name=item.class_name,
            mode=item.mode,
            sample=sample,
            parameters=item.parameters,
            family=self.info.name,
            models=self._models,
            token_count=words.tokens.token_count,
            token_policy=words.policy.value,
            pixel_sha256=pixel_sha256,
            backend=self.info.backend,
            writer=words.writer,
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Words(NamedTuple):
    """All that is said of one image before it is painted."""

    caption: str
    prompt: str
    writer: str
    policy: TokenPolicy
    tokens: PromptTokens


class _Life:
    """One item's way through the stages; every sample of it lives on its own once the words are there."""

    def __init__(self, pipeline: Pipeline, item: Item, emit: Callable[[Event], object]) -> None:
        self._pipeline = pipeline
        self._item = item
        self._emit = emit
        self._arrived_s = pipeline._clock()
        self._stage_seconds: dict[str, float] = {}
        self._captions: dict[str, Captioned] = {}
        self._prompted: set[int] = set()
        self._num_images = self._num_failed = 0

    async def live(self) -> None:
        """From arrival to `Done`."""
        try:
            async with asyncio.timeout(self._item.parameters.deadline_s):
                await self._caption()
                if self._item.parameters.stop_after is not Stage.CAPTION:
                    await self._each_sample()
        except TimeoutError:
            raise Expired("DEADLINE", "the item's deadline passed") from None
        self._emit(Done(self._num_images, self._num_failed, self._stage_seconds))

    async def _each_sample(self) -> None:
        *others, last = self._item.samples
        async with asyncio.TaskGroup() as group:
            for sample in others:
                group.create_task(self._sample(sample))
            await self._sample(last)  # in this task: most items have one sample

    async def _caption(self) -> None:
        """Every caption length that the item's samples need, or the words that came with it."""
        item, image = self._item, self._item.image
        if image is None:
            return
        only = item.parameters.stop_after is Stage.CAPTION
        asked = {caption_length(item.mode, sample.seed) for sample in item.samples}
        lengths = sorted(length for length in asked if length) or (["short"] if only else [])
        if not lengths:  # the mode asks for no caption, but a broken image is still a broken item
            await self._pipeline.check(image)
        else:
            async for captioned in self._pipeline.captions(image, lengths, Share.of(item.parameters)):
                self._captions[captioned.length] = captioned
                self._emit(captioned)
        self._passed("caption")

    async def _sample(self, sample: Sample) -> None:
        try:
            await self._make(sample)
        except CaptoryError as error:
            self._fail(sample, error.reason, error.message, status=error.grpc_status)
        except Exception:  # one image's fault is not its siblings', whatever it is
            log.exception("an image of item %s failed", self._item.id)
            self._fail(sample, "INTERNAL", "the image could not be made", status="INTERNAL")

    async def _make(self, sample: Sample) -> None:
        words = await self._words(sample)
        self._announce(words, sample)
        if words.tokens.dropped:
            self._fail(sample, "OVER_TOKEN_BUDGET", "the prompt is over the token budget", dropped=True)
        elif self._item.parameters.stop_after is Stage.IMAGE:
            painted = await self._pipeline.paint(self._item, sample, words)
            self._num_images += 1
            self._passed("image")
            self._emit(painted)

    async def _words(self, sample: Sample) -> _Words:
        """The prompt of one image; a client's own is taken as it is and never dropped."""
        item, caption = self._item, self._caption_of(sample)
        if item.prompt is not None:
            policy, prompt, writer = TokenPolicy.TRUNCATE, item.prompt, "client"
        else:
            policy = PLANS[item.mode].policy
            prompt, writer = await self._pipeline.write(item, sample, caption)
            self._passed("prompt")
        return _Words(caption, prompt, writer, policy, self._pipeline.tokenize(prompt, policy))

    def _caption_of(self, sample: Sample) -> str:
        if self._item.prompt is not None:
            return ""
        if self._item.caption is not None:
            return clean_model_text(self._item.caption)
        length = caption_length(self._item.mode, sample.seed)
        return self._captions[length].text if length else ""

    def _announce(self, words: _Words, sample: Sample) -> None:
        if sample.prompt_index not in self._prompted:
            self._prompted.add(sample.prompt_index)
            self._emit(Prompted(words.prompt, sample.prompt_index, words.tokens.token_count, words.writer))

    def _fail(
        self, sample: Sample, reason: str, message: str, *, dropped: bool = False, status: str = "OUT_OF_RANGE"
    ) -> None:
        self._num_failed += not dropped
        self._emit(Failed(sample, reason, message, dropped, status))

    def _passed(self, stage: str) -> None:
        self._stage_seconds[stage] = self._pipeline._clock() - self._arrived_s
