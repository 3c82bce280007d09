"""The methods of `captory.v1.Captory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from captory_engine.errors import Unavailable
from captory_engine.items import Captioned, Failed, Item, Painted, Prompted
from captory_proto.v1 import captory_pb2 as pb
from captory_proto.v1 import captory_pb2_grpc
from captory_server.admission import Admission
from captory_server.codec import read_caption_request, read_generate_request, read_prompt_request
from captory_server.config import Settings
from captory_server.ports import Pipeline
from captory_server.results import failure, write_caption, write_image, write_info, write_prompt, write_stats
from captory_server.stream import MAX_BATCH_BYTES, ItemStream

Wanted = TypeVar("Wanted", Captioned, Prompted, Painted)


class CaptoryService(captory_pb2_grpc.CaptoryServicer):
    """Answers once `start` has given it a pipeline; until then every method is UNAVAILABLE."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self._version = version
        self._loaded: tuple[Pipeline, Admission] | None = None
        self.draining = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether there is a pipeline that can run items."""
        return self._loaded is not None and self._loaded[0].healthy

    def start(self, pipeline: Pipeline) -> Admission:
        """Begin to answer."""
        admission = Admission(
            pipeline,
            max_item_price=self._settings.max_item_price,
            max_queued_price=self._settings.max_queued_price,
            max_input_bytes=self._settings.max_input_bytes,
        )
        self._loaded = pipeline, admission
        return admission

    async def Synthesize(  # noqa: N802, D102 - the wire's name and words
        self, request_iterator: AsyncIterator[pb.SynthesizeRequest], context: Any
    ) -> AsyncGenerator[pb.SynthesizeResponse, None]:
        pipeline, admission = self._ready()
        settings = self._settings
        stream = ItemStream(
            pipeline,
            admission,
            self.draining,
            settings.max_stream_images,
            settings.max_stream_input_bytes,
            min(MAX_BATCH_BYTES, settings.max_message_bytes // 2),
        )
        async with aclosing(stream.responses(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def Caption(self, request: pb.CaptionRequest, context: Any) -> pb.CaptionResponse:  # noqa: N802, D102
        pipeline, _ = self._ready()
        [caption] = await self._collect(context, read_caption_request(request, pipeline.info), Captioned)
        return pb.CaptionResponse(caption=write_caption(caption))

    async def Prompt(self, request: pb.PromptRequest, context: Any) -> pb.PromptResponse:  # noqa: N802, D102
        pipeline, _ = self._ready()
        prompts = await self._collect(context, read_prompt_request(request, pipeline.info), Prompted)
        return pb.PromptResponse(prompts=map(write_prompt, prompts))

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802, D102
        pipeline, _ = self._ready()
        images = await self._collect(context, read_generate_request(request, pipeline.info), Painted)
        images.sort(key=lambda image: image.provenance.sample.sample_index)
        return pb.GenerateResponse(images=map(write_image, images))

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.ServerInfo:  # noqa: N802, D102
        pipeline, _ = self._ready()
        return write_info(pipeline.info, version=self._version, max_message_bytes=self._settings.max_message_bytes)

    async def GetStats(self, request: pb.GetStatsRequest, context: Any) -> pb.Stats:  # noqa: N802, D102
        pipeline, _ = self._ready()
        return write_stats(pipeline.device)

    def _ready(self) -> tuple[Pipeline, Admission]:
        if self._loaded is None:
            raise Unavailable("WARMING_UP", "the models are being loaded")
        if self.draining.is_set():
            raise Unavailable("DRAINING", "the server is shutting down")
        if not self.healthy:
            raise Unavailable("UNWELL", "the models do not answer")
        return self._loaded

    async def _collect(self, context: Any, item: Item, kind: type[Wanted]) -> list[Wanted]:
        """Run one item for a unary call; an image that fails, fails the call."""
        pipeline, admission = self._ready()
        wanted = []
        async with admission.at_once(_hurry(item, context)) as ready, aclosing(pipeline.run(ready)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise failure(event)
                if isinstance(event, kind):
                    wanted.append(event)
        return wanted


def _hurry(item: Item, context: Any) -> Item:
    """The item with the sooner of its own deadline and its call's."""
    both = item.parameters.deadline_s, context.time_remaining()
    sooner_s = min((deadline_s for deadline_s in both if deadline_s is not None), default=None)
    if sooner_s is None:
        return item
    return replace(item, parameters=replace(item.parameters, deadline_s=sooner_s))
