"""The life of an item, in the order in which it is lived: caption, prompt, encode text, denoise, finish, deliver."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from captory_engine import images
from captory_engine.device import Device
from captory_engine.errors import CaptoryError, Exhausted, Expired, InvalidInput
from captory_engine.info import FamilyInfo
from captory_engine.items import (
    Captioned,
    Done,
    Event,
    Failed,
    Item,
    Mode,
    Painted,
    Prompted,
    Provenance,
    Sample,
    Stage,
)
from captory_engine.prompts import PLANS, TokenPolicy, WriterKind, build_prompt, caption_length, clean_model_text
from captory_engine.stages import Captioner, Painter, Share, Writer

RETRY_AFTER_S = 1.0


class Pipeline:
    """All stages over one device. Items ride together wherever they can; each is alone in its errors."""

    def __init__(
        self,
        info: FamilyInfo,
        device: Device,
        captioner: Captioner,
        writer: Writer | None,
        painter: Painter,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.device = device
        self._captioner = captioner
        self._writer = writer
        self._painter = painter
        self._clock = clock
        self._room = asyncio.Semaphore(info.limits.max_items)
        self._codecs = ThreadPoolExecutor(2, thread_name_prefix="captory-codec")
        self._loop = asyncio.create_task(device.serve(), name="captory-device")
        self._living: set[asyncio.Task[None]] = set()

    @property
    def healthy(self) -> bool:
        """Whether the device's loop runs."""
        return not self._loop.done()

    @property
    def num_items(self) -> int:
        """Items in flight."""
        return len(self._living)

    @asynccontextmanager
    async def slot(self, *, wait: bool = True) -> AsyncIterator[None]:
        """Room for one item. Waits for it, or raises `Exhausted` at once."""
        if not wait and self._room.locked():
            raise Exhausted("QUEUE_FULL", "the server holds all the items that it can", retry_after_s=RETRY_AFTER_S)
        async with self._room:
            yield

    async def run(self, item: Item) -> AsyncGenerator[Event, None]:
        """The item's events, ending with `Done`. Leaving the iterator cancels the item.

        Raises a `CaptoryError` for what concerns the whole item; what concerns one image is a `Failed` event.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        life = asyncio.create_task(_Life(self, item, events.put_nowait).live(), name=f"captory-item-{item.id}")
        self._living.add(life)
        life.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await life
        finally:
            life.cancel()
            await asyncio.wait([life])
            self._living.discard(life)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until no item is in flight; False when the time ran out first."""
        if self._living:
            await asyncio.wait(self._living, timeout=timeout_s)
        return not self._living

    async def close(self) -> None:
        """Stop the device and free its threads."""
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        await self.device.close()
        self._codecs.shutdown(wait=True)

    async def in_codec_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run an image codec off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._codecs, function, *args)

    # The stages, for one life.

    async def caption(self, image: bytes, digest: str, length: str, share: Share) -> Captioned:
        """The caption of encoded image bytes."""
        spec, limits = self._captioner.spec, self.info.limits

        def decode() -> Any:
            bounds = images.ImageLimits(max_pixels=limits.max_image_pixels)
            decoded = images.decode_image(image, bounds, min_side_px=spec.image_size_px)
            return images.to_pixel_values(decoded, spec.image_size_px, spec.image_mean, spec.image_std)

        return await self._captioner.caption(digest, lambda: self.in_codec_thread(decode), length, share)

    async def write(self, item: Item, sample: Sample, caption: str) -> tuple[str, str]:
        """One prompt and who wrote it: template, model or fallback."""
        if PLANS[item.mode].writer is WriterKind.TEMPLATE or self._writer is None:
            return build_prompt(item.mode, item.class_name, caption), "template"
        rewritten = await self._writer.rewrite(caption, sample.seed, Share.of(item.parameters))
        prompt = build_prompt(item.mode, item.class_name, rewritten.text)
        return prompt, "model" if rewritten.accepted else "fallback"

    async def paint(self, prompt: str, policy: TokenPolicy, item: Item, sample: Sample, caption: str) -> Painted:
        """One finished image from a prompt within the token budget."""
        tokens = self._painter.tokenizer.encode(prompt, policy)
        pixels = await self._painter.paint(tokens.ids, sample, item.parameters)
        array = images.latents_to_uint8(pixels)
        data = await self.in_codec_thread(images.encode_image, array, item.parameters.format)
        return Painted(
            data,
            Provenance(
                caption=caption,
                prompt=prompt,
                class_name=item.class_name,
                mode=item.mode,
                sample=sample,
                parameters=item.parameters,
                family=self.info.name,
                models={name: model.sha256 for name, model in self.info.models.items()},
                token_count=tokens.token_count,
                token_policy=policy.value,
                pixel_sha256=images.pixel_sha256(array),
                backend=self.info.backend,
            ),
        )

    def over_budget(self, prompt: str, policy: TokenPolicy) -> bool:
        """Whether the policy drops this prompt."""
        return self._painter.tokenizer.encode(prompt, policy).dropped

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt as the painter counts them."""
        return self._painter.tokenizer.encode(prompt).token_count


class _Life:
    """One item's way through the stages; every sample of it lives on its own once the words are there."""

    def __init__(self, pipeline: Pipeline, item: Item, emit: Callable[[Event], None]) -> None:
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
        try:
            async with asyncio.TaskGroup() as group:
                for sample in self._item.samples:
                    group.create_task(self._sample(sample))
        except* CaptoryError as errors:
            raise errors.exceptions[0] from None

    async def _caption(self) -> None:
        """Every caption length that the item's samples need, or the words that came with it."""
        item, image = self._item, self._item.image
        if image is None:
            return
        only = item.parameters.stop_after is Stage.CAPTION
        lengths = {caption_length(item.mode, sample.seed) for sample in item.samples} - {None}
        if only and not lengths:
            lengths = {"short"}
        if not lengths:  # the mode asks for no caption, but a broken image is still a broken item
            await self._pipeline.in_codec_thread(images.decode_image, image)
        digest = hashlib.sha256(image).hexdigest()
        for length in sorted(length for length in lengths if length):
            captioned = await self._pipeline.caption(image, digest, length, Share.of(item.parameters))
            self._captions[length] = captioned
            self._emit(captioned)
        self._passed("caption")

    async def _sample(self, sample: Sample) -> None:
        try:
            await self._make(sample)
        except CaptoryError as error:
            self._fail(sample, error.reason, error.message)

    async def _make(self, sample: Sample) -> None:
        item, policy = self._item, PLANS[self._item.mode].policy
        caption = self._caption_of(sample)
        prompt, writer = (item.prompt, "client") if item.prompt else await self._write(sample, caption)
        self._announce(prompt, writer, sample)
        if item.prompt is None and self._pipeline.over_budget(prompt, policy):
            self._fail(sample, "OVER_TOKEN_BUDGET", "the prompt is over the token budget", dropped=True)
        elif item.parameters.stop_after is Stage.IMAGE:
            painted = await self._pipeline.paint(prompt, policy, item, sample, caption)
            self._num_images += 1
            self._passed("image")
            self._emit(painted)

    async def _write(self, sample: Sample, caption: str) -> tuple[str, str]:
        prompt, writer = await self._pipeline.write(self._item, sample, caption)
        self._passed("prompt")
        return prompt, writer

    def _caption_of(self, sample: Sample) -> str:
        if self._item.prompt is not None:
            return ""
        if self._item.caption is not None:
            return clean_model_text(self._item.caption)
        length = caption_length(self._item.mode, sample.seed)
        return self._captions[length].text if length else ""

    def _announce(self, prompt: str, writer: str, sample: Sample) -> None:
        if sample.prompt_index not in self._prompted:
            self._prompted.add(sample.prompt_index)
            self._emit(Prompted(prompt, sample.prompt_index, self._pipeline.count_tokens(prompt), writer))

    def _fail(self, sample: Sample, reason: str, message: str, *, dropped: bool = False) -> None:
        self._num_failed += not dropped
        self._emit(Failed(sample, reason, message, dropped))

    def _passed(self, stage: str) -> None:
        self._stage_seconds[stage] = self._pipeline._clock() - self._arrived_s


def check(item: Item) -> None:
    """Refuse an item that has not exactly one input, or a mode that cannot use it."""
    given = [value for value in (item.image, item.caption, item.prompt) if value is not None]
    if len(given) != 1:
        raise InvalidInput("INPUT", "exactly one of image, caption and prompt is needed", field="input")
    if item.mode is Mode.BASIC and item.caption is not None and not item.class_name:
        raise InvalidInput("CLASS", "basic prompts of a caption need a class name", field="class_name")
