"""The life of an item, in the order in which it is lived: caption, prompt, encode text, denoise, finish, deliver."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from captory_engine import images
from captory_engine.captioning import Captioner
from captory_engine.codecs import Codecs
from captory_engine.device import Device
from captory_engine.errors import CaptoryError, Expired, Unavailable
from captory_engine.info import FamilyInfo
from captory_engine.items import (
    Captioned,
    Determinism,
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
from captory_engine.modes import CaptionLength, Modes, PromptPlan, TokenPolicy
from captory_engine.prompts import build_prompt, caption_length, clean_model_text, given_words
from captory_engine.sessions.base import Session
from captory_engine.stages import Painter, Share
from captory_engine.tokenizer import PromptTokens
from captory_engine.wording import Wording

log = logging.getLogger(__name__)


class Remote(Protocol):
    """A server elsewhere that some stage asks."""

    async def close(self) -> None:
        """Ask it no more."""
        ...


class Pipeline:
    """All stages over one device. Items ride together wherever they can; each is alone in its errors."""

    def __init__(
        self,
        info: FamilyInfo,
        device: Device,
        captioner: Captioner,
        wording: Wording | None,
        painter: Painter,
        modes: Modes,
        codecs: Codecs,
        sessions: Sequence[Session] = (),
        *,
        remotes: Sequence[Remote] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.device = device
        self.captioner = captioner
        self.modes = modes
        self._wording = wording
        self._painter = painter
        self._codecs = codecs
        self._sessions = sessions
        self._remotes = remotes
        self._clock = clock
        self._models = {name: model.sha256 for name, model in info.models.items()}
        self._loop = asyncio.create_task(device.serve(), name="captory-device")
        self._loop.add_done_callback(self._loop_ended)
        self._num_items = 0

    @property
    def healthy(self) -> bool:
        """Whether the device's loop runs."""
        return not self._loop.done()

    @property
    def answers(self) -> bool:
        """Whether work that comes now is begun now; what is elsewhere may be away.

        A writer that is away holds up few modes: their images wait or fail, and the others go on.
        """
        return self.device.answers and self.captioner.answers

    @property
    def num_items(self) -> int:
        """Items in flight."""
        return self._num_items

    def rounds(self, item: Item) -> int:
        """How often each image of the item is painted: more than once only in a closed loop."""
        return self.modes.plans[item.mode].rounds if item.prompt is None else 1

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
        for remote in self._remotes:
            await remote.close()
        self._codecs.close()
        for session in self._sessions:
            session.close()

    # The stages, for one life.

    async def write(self, item: Item, sample: Sample, caption: str) -> tuple[str, str]:
        """One prompt and who wrote it: template, model or fallback."""
        plan = self.modes.plans[item.mode]
        given = given_words(plan, item.class_name, caption, item.attributes)
        if plan.instruction is None:
            return build_prompt(plan, given), "template"
        assert self._wording is not None, "a mode that needs a writer is offered only with one"
        share = Share.of(item.parameters)
        words = await self._wording.words(plan.instruction, plan.accept, given, sample.seed, share)
        return build_prompt(plan, given, words), "fallback" if words is None else "model"

    def fit(self, prompt: str, policy: TokenPolicy, image_index: int) -> tuple[str, PromptTokens]:
        """The prompt as the painter's text encoder takes it; of one that is split, the part of this image.

        Its tokens are counted before that.
        """
        tokenizer = self._painter.tokenizer
        whole = tokenizer.encode(prompt, policy)
        if policy is not TokenPolicy.SPLIT:
            return prompt, whole
        parts = tokenizer.split(prompt)
        part = parts[image_index % len(parts)]
        return part, replace(tokenizer.encode(part, policy), token_count=whole.token_count)

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
            mode_sha256=self.modes.digests[item.mode],
            attributes=item.attributes if "attributes" in self.modes.plans[item.mode].needed else (),
            synthetic_captions=words.synthetic_captions,
        )


class _Words(NamedTuple):
    """All that is said of one image before it is painted."""

    caption: str
    prompt: str
    writer: str
    policy: TokenPolicy
    tokens: PromptTokens
    synthetic_captions: tuple[str, ...] = ()


class _Life:
    """One item's way through the stages; every sample of it lives on its own once the words are there."""

    def __init__(self, pipeline: Pipeline, item: Item, emit: Callable[[Event], object]) -> None:
        self._pipeline = pipeline
        self._item = item
        self._emit = emit
        self._arrived_s = pipeline._clock()
        self._stage_seconds: dict[str, float] = {}
        self._plan: PromptPlan = pipeline.modes.plans[item.mode]
        self._captions: dict[str, Captioned] = {}
        self._prompted: set[tuple[int, str]] = set()
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
        asked = {self._length(sample) for sample in item.samples}
        lengths = sorted(length for length in asked if length) or (["short"] if only else [])
        if not lengths:  # the mode asks for no caption, but a broken image is still a broken item
            await self._pipeline.captioner.check(image)
        else:
            async for captioned in self._pipeline.captioner.captions(image, lengths, Share.of(item.parameters)):
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
        painting = self._item.parameters.stop_after is Stage.IMAGE
        words = await self._words(sample, self._caption_of(sample))
        for turn in range(1, self._pipeline.rounds(self._item) if painting else 1):
            words = await self._retold(sample, words, turn)
        self._announce(words, sample)
        if words.tokens.dropped:
            self._fail(sample, "OVER_TOKEN_BUDGET", "the prompt is over the token budget", dropped=True)
        elif painting:
            painted = await self._pipeline.paint(self._item, sample, words)
            self._num_images += 1
            self._passed("image")
            self._emit(painted)

    async def _words(self, sample: Sample, caption: str) -> _Words:
        """The prompt of one image; a client's own is taken as it is and never dropped or split."""
        item = self._item
        if item.prompt is not None:
            policy, prompt, writer = TokenPolicy.TRUNCATE, item.prompt, "client"
        else:
            policy = self._plan.policy
            prompt, writer = await self._pipeline.write(item, sample, caption)
            self._passed("prompt")
        prompt, tokens = self._pipeline.fit(prompt, policy, sample.prompt_index + sample.sample_index)
        return _Words(caption, prompt, writer, policy, tokens)

    async def _retold(self, sample: Sample, words: _Words, turn: int) -> _Words:
        """What is said of the image that `words` paint: the closed loop of Lei et al., arXiv 2307.08526.

        The draft is painted `exact` whatever the item asks for: pixels that drift could change its caption.
        """
        if words.tokens.dropped:
            return words
        exact = replace(self._item.parameters, determinism=Determinism.EXACT)
        item, draft = replace(self._item, parameters=exact), replace(sample, seed=draft_seed(sample.seed, turn))
        painted = await self._pipeline.paint(item, draft, words)
        lengths = [self._length(sample) or "short"]
        captions = self._pipeline.captioner.captions(painted.data, lengths, Share.of(exact))
        [said] = [captioned.text async for captioned in captions]
        retold = await self._words(sample, said)
        return retold._replace(caption=words.caption, synthetic_captions=(*words.synthetic_captions, said))

    def _length(self, sample: Sample) -> CaptionLength | None:
        return caption_length(self._plan, sample.seed, self._item.attributes)

    def _caption_of(self, sample: Sample) -> str:
        if self._item.prompt is not None:
            return ""
        if self._item.caption is not None:
            return clean_model_text(self._item.caption)
        length = self._length(sample)
        return self._captions[length].text if length else ""

    def _announce(self, words: _Words, sample: Sample) -> None:
        """Once for each different prompt."""
        said = sample.prompt_index, words.prompt
        if said not in self._prompted:
            self._prompted.add(said)
            self._emit(Prompted(words.prompt, sample.prompt_index, words.tokens.token_count, words.writer))

    def _fail(
        self, sample: Sample, reason: str, message: str, *, dropped: bool = False, status: str = "OUT_OF_RANGE"
    ) -> None:
        self._num_failed += not dropped
        self._emit(Failed(sample, reason, message, dropped, status))

    def _passed(self, stage: str) -> None:
        self._stage_seconds[stage] = self._pipeline._clock() - self._arrived_s


def draft_seed(seed: int, turn: int) -> int:
    """The seed of a closed loop's draft: 53 bits of a hash, so that no draft is another image's."""
    return int.from_bytes(hashlib.sha256(f"closed-loop:{seed}:{turn}".encode()).digest()[:8], "big") >> 11
