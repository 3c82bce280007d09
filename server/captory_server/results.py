"""The engine's events and facts to messages."""

from __future__ import annotations

from typing import TypeAlias

from google.rpc import status_pb2

from captory_engine import items
from captory_engine.device import StageCounts
from captory_engine.errors import BadModel, BadOutput, CaptoryError, Exhausted, Expired, InvalidInput, Unavailable
from captory_engine.info import FamilyInfo
from captory_engine.items import Done, Event, Failed, Painted, Prompted
from captory_proto.v1 import captory_pb2 as pb
from captory_server.names import DETERMINISMS, IMAGE_FORMATS, MODES
from captory_server.ports import Device
from captory_server.status import status_of

RETRY_AFTER_S = 1.0
_KINDS: dict[str, type[CaptoryError]] = {
    kind.grpc_status: kind for kind in (BadModel, BadOutput, Expired, InvalidInput, Unavailable)
}
Told: TypeAlias = Event | status_pb2.Status  # what is said of an item; a status alone is its end


def is_end(told: Told) -> bool:
    """Whether nothing more is said of the item."""
    return isinstance(told, Done | status_pb2.Status)


def write_response(response: pb.SynthesizeResponse, item_id: str, told: Told) -> None:
    """Fill an empty response with one thing that is said of one item."""
    response.item_id = item_id
    match told:
        case items.Captioned():
            response.caption.CopyFrom(write_caption(told))
        case Prompted():
            response.prompt.CopyFrom(write_prompt(told))
        case Painted():
            _fill_image(response.image, told)
        case Failed():
            response.failure.CopyFrom(_write_failure(told))
        case Done():
            response.done.CopyFrom(_write_done(told))
        case _:
            response.done.status.CopyFrom(told)


def write_caption(event: items.Captioned) -> pb.CaptionResult:
    """A caption."""
    return pb.CaptionResult(text=event.text, length=event.length, token_count=event.token_count)


def write_prompt(event: Prompted) -> pb.PromptResult:
    """A prompt."""
    return pb.PromptResult(
        text=event.text, prompt_index=event.prompt_index, token_count=event.token_count, writer=event.writer
    )


def write_image(event: Painted) -> pb.ImageResult:
    """An image with where it came from."""
    image = pb.ImageResult()
    _fill_image(image, event)
    return image


class Dropped(CaptoryError):  # noqa: N818
    """The family's policy wants no image of this prompt; nothing is wrong."""

    grpc_status = "FAILED_PRECONDITION"


def failure(event: Failed) -> CaptoryError:
    """Why an image will not come."""
    if event.dropped:
        return Dropped(event.reason, event.message)
    if event.status == Exhausted.grpc_status:
        return Exhausted(event.reason, event.message, retry_after_s=RETRY_AFTER_S)
    return _KINDS.get(event.status, CaptoryError)(event.reason, event.message)


def write_info(info: FamilyInfo, *, version: str, max_message_bytes: int) -> pb.ServerInfo:
    """What this server runs, its defaults and its limits."""
    return pb.ServerInfo(
        version=version,
        family=info.name,
        models=[pb.ModelInfo(name=name, sha256=m.sha256, backend=m.backend) for name, m in info.models.items()],
        defaults=_write_defaults(info.defaults),
        sizes=[pb.Size(width=width, height=height) for width, height in info.sizes],
        samplers=info.samplers,
        modes=[MODES.write(mode) for mode in info.modes],
        limits=_write_limits(info, max_message_bytes),
        backend=info.backend,
        in_world_only=info.in_world_only,
        mode_sha256={str(mode): digest for mode, digest in info.mode_sha256.items()},
        inexact_modes=[MODES.write(mode) for mode in info.inexact_modes],
    )


def write_stats(device: Device) -> pb.Stats:
    """What the device has done, stage by stage."""
    return pb.Stats(
        stages=[_write_stage(name, stage) for name, stage in device.counts.items()],
        lanes=device.num_lanes,
        uptime_seconds=device.uptime_s,
        busy_seconds=sum(stage.seconds for stage in device.counts.values()),
    )


def _write_stage(name: str, stage: StageCounts) -> pb.StageStats:
    return pb.StageStats(
        name=name,
        batches=stage.batches,
        useful_rows=stage.useful_rows,
        computed_rows=stage.computed_rows,
        seconds=stage.seconds,
        batch_rows=stage.batch_rows,
        max_rows=stage.max_rows,
    )


def _write_limits(info: FamilyInfo, max_message_bytes: int) -> pb.Limits:
    limits = info.limits
    return pb.Limits(
        max_images=limits.max_images,
        max_steps=limits.max_steps,
        max_image_bytes=limits.max_image_bytes,
        max_image_pixels=limits.max_image_pixels,
        max_text_bytes=limits.max_text_bytes,
        max_message_bytes=max_message_bytes,
        max_items=limits.max_items,
        max_guidance_scale=limits.max_guidance_scale,
    )


def _write_defaults(defaults: items.Parameters) -> pb.Parameters:
    return pb.Parameters(
        n=1,
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        guidance_interval=_write_interval(defaults.guidance_interval),
        sampler=defaults.sampler,
        width=defaults.width,
        height=defaults.height,
        determinism=DETERMINISMS.write(defaults.determinism),
        format=IMAGE_FORMATS.write(defaults.format),
    )


def _fill_image(image: pb.ImageResult, event: Painted) -> None:
    """In place: a message that is built first and copied then costs three times as much."""
    image.data = event.data
    image.format = IMAGE_FORMATS.write(event.provenance.parameters.format)
    _fill_provenance(image.provenance, event.provenance)


def _fill_provenance(message: pb.Provenance, made: items.Provenance) -> None:
    asked, sample = made.parameters, made.sample
    message.caption = made.caption
    message.prompt = made.prompt
    message.negative_prompt = asked.negative_prompt
    message.class_name = made.class_name
    message.mode = MODES.write(made.mode)
    message.prompt_index = sample.prompt_index
    message.sample_index = sample.sample_index
    message.seed = sample.seed
    message.steps = asked.steps
    message.guidance_scale = asked.guidance_scale
    message.guidance_interval.start = asked.guidance_interval.start
    message.guidance_interval.stop = asked.guidance_interval.stop
    message.sampler = asked.sampler
    message.width = asked.width
    message.height = asked.height
    message.determinism = DETERMINISMS.write(asked.determinism)
    message.family = made.family
    message.models.update(made.models)
    message.token_count = made.token_count
    message.token_policy = made.token_policy
    message.pixel_sha256 = made.pixel_sha256
    message.backend = made.backend
    message.writer = made.writer
    message.mode_sha256 = made.mode_sha256
    message.attributes.extend(made.attributes)
    message.synthetic_captions.extend(made.synthetic_captions)


def _write_interval(interval: items.GuidanceInterval) -> pb.GuidanceInterval:
    return pb.GuidanceInterval(start=interval.start, stop=interval.stop)


def _write_failure(event: Failed) -> pb.ImageFailure:
    return pb.ImageFailure(
        prompt_index=event.sample.prompt_index,
        sample_index=event.sample.sample_index,
        status=status_of(failure(event)),
        dropped=event.dropped,
    )


def _write_done(event: Done) -> pb.ItemDone:
    return pb.ItemDone(
        status=status_pb2.Status(),
        num_images=event.num_images,
        num_failed=event.num_failed,
        stage_seconds=event.stage_seconds,
    )
