"""Makes a job's results through a server: the `Synthesize` that `captory_data.runner` asks for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from captory_client.errors import ClientError, reason_of
from captory_client.settle import check
from captory_client.wire import items_to_wire, wire_ids
from captory_client.workshop import Workshop
from captory_data.dataset import MODE_SHA256
from captory_data.errors import TransportError
from captory_data.identity import Wanted
from captory_data.outcomes import Failure, Finished, ItemDone, Outcome, StageDone, Started, WorkItem
from captory_data.spec import JobSpec
from captory_proto.v1 import captory_pb2 as pb

IN_WORLD_ONLY = (
    "The family {family!r} was trained on a small drawn world. What it makes of real photographs lies outside of that "
    "world: expect drawings of the things it knows, not likenesses."
)


@dataclass(slots=True)
class _Part:
    """One message's share of an item: the images that have not come yet, by their indices."""

    key: str
    missing: dict[tuple[int, int], Wanted]
    siblings: set[str] = field(default_factory=set)  # wire ids of the item's parts that are not done


class Synthesizer:
    """Called with work, once a run. Raises `SpecError` for parameters that the server refuses."""

    def __init__(self, workshop: Workshop, spec: JobSpec, notify: Callable[[str], None]) -> None:
        self._workshop = workshop
        self._spec = spec
        self._notify = notify
        self._parts: dict[str, _Part] = {}

    async def __call__(self, work: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        """Outcomes of the items, as they come."""
        try:
            client, info = await self._workshop.client(), await self._workshop.info()
            check(self._spec, info)
            start = started(info, self._spec.mode)
            if start.notice:
                self._notify(start.notice)
            yield start
            async with aclosing(client.synthesize(self._messages(work, info))) as responses:
                async for response in responses:
                    for outcome in self._outcomes(response):
                        yield outcome
        except ClientError as error:
            raise TransportError(str(error)) from error

    async def _messages(self, work: AsyncIterator[WorkItem], info: pb.ServerInfo) -> AsyncGenerator[pb.Item, None]:
        async for one in work:
            siblings = set(wire_ids(one, info.limits))
            for message, wanted in items_to_wire(one, self._spec, info.limits):
                missing = {(image.prompt_index, image.sample_index): image for image in wanted}
                self._parts[message.id] = _Part(one.key, missing, siblings)
                yield message

    def _outcomes(self, response: pb.SynthesizeResponse) -> Iterator[Outcome]:
        part = self._parts[response.item_id]
        match response.WhichOneof("event"):
            case "caption":
                yield StageDone(part.key, "caption")
            case "prompt":
                yield StageDone(part.key, "prompt")
            case "image":
                yield _finished(part, response.image)
            case "failure":
                yield _failure(part, response.failure)
            case "done":
                yield from self._done(response.item_id, response.done)

    def _done(self, wire_id: str, done: pb.ItemDone) -> Iterator[Outcome]:
        """The end of a part; the last part ends the item."""
        part = self._parts.pop(wire_id)
        for wanted in part.missing.values() if done.status.code else ():
            yield Failure(part.key, wanted.id, reason_of(done.status), done.status.message)
        part.siblings.discard(wire_id)
        if not part.siblings:
            yield ItemDone(part.key, dict(done.stage_seconds))


def started(info: pb.ServerInfo, mode: str) -> Started:
    """What makes the results. A server of before the instruction files has no digest of the mode."""
    digest = {MODE_SHA256: info.mode_sha256[mode]} if mode in info.mode_sha256 else {}
    return Started(
        models={model.name: model.sha256 for model in info.models},
        backend=info.backend,
        notice=IN_WORLD_ONLY.format(family=info.family) if info.in_world_only else "",
        versions={"server": info.version, **digest},
    )


def _finished(part: _Part, image: pb.ImageResult) -> Finished:
    made = image.provenance
    wanted = part.missing.pop((made.prompt_index, made.sample_index))
    return Finished(
        key=part.key,
        id=wanted.id,
        image=image.data,
        caption=made.caption,
        prompt=made.prompt,
        models=dict(made.models),
        pixel_sha256=made.pixel_sha256,
        token_count=made.token_count,
        token_policy=made.token_policy,
        backend=made.backend,
        writer=made.writer,
        mode_sha256=made.mode_sha256,
        attributes=tuple(made.attributes),
        synthetic_captions=tuple(made.synthetic_captions),
    )


def _failure(part: _Part, failure: pb.ImageFailure) -> Failure:
    wanted = part.missing.pop((failure.prompt_index, failure.sample_index))
    return Failure(part.key, wanted.id, reason_of(failure.status), failure.status.message, failure.dropped)
