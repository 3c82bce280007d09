"""Messages to the engine's values: every field checked, every default filled in, nothing left to settle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from captory_data.identity import image_indices
from captory_engine import items
from captory_engine.info import FamilyInfo
from captory_engine.items import Mode, Sample, Stage, WorkClass
from captory_proto.v1 import captory_pb2 as pb
from captory_server.fields import MAX_SEED, check_float, check_id, check_int, check_seed, check_text, refuse
from captory_server.names import DETERMINISMS, IMAGE_FORMATS, MODES, STAGES, WORK_CLASSES

MAX_INDEX = 65_535
MAX_ATTRIBUTES = 64
_ORDER = (Stage.CAPTION, Stage.PROMPT, Stage.IMAGE)
_ENTRY = {"image": Stage.CAPTION, "caption": Stage.PROMPT, "prompt": Stage.IMAGE}


def read_item(message: pb.Item, info: FamilyInfo) -> items.Item:
    """One streamed item. Raises `InvalidInput` with the field that is wrong."""
    parameters = read_parameters(message.parameters, info, WorkClass.BULK)
    mode = _read_mode("mode", message.mode, info)
    image, caption, prompt = _read_input(message, info, parameters.stop_after)
    if parameters.determinism is items.Determinism.EXACT and mode in info.inexact_modes and prompt is None:
        raise refuse("parameters.determinism", f"{mode} has words of a vLLM server, which does not repeat them exactly")
    return items.Item(
        id=check_id("id", message.id),
        parameters=parameters,
        samples=_read_samples(message, mode, info.limits.max_images),
        mode=mode,
        class_name=check_text("class_name", message.class_name, info.limits.max_text_bytes),
        image=image,
        caption=caption,
        prompt=prompt,
        attributes=_read_attributes(message.attributes, info.limits.max_text_bytes),
    )


def read_caption_request(message: pb.CaptionRequest, info: FamilyInfo) -> items.Item:
    """One image to one caption: the mode asks the captioner for the length."""
    if message.length not in ("", "short", "long"):
        raise refuse("length", 'must be "short" or "long"')
    return items.Item(
        id="caption",
        parameters=_unary(info, Stage.CAPTION, message.deadline_ms),
        samples=(Sample(0, 0, 0),),
        mode=Mode.RECAP_LONG if message.length == "long" else Mode.RECAP_SHORT,
        image=_check_image(message.image, info),
    )


def read_prompt_request(message: pb.PromptRequest, info: FamilyInfo) -> items.Item:
    """One caption to prompts."""
    mode = _read_mode("mode", message.mode, info)
    num = check_int("n", message.n or 1, 1, info.limits.max_images)
    return items.Item(
        id="prompt",
        parameters=_unary(info, Stage.PROMPT, message.deadline_ms),
        samples=derive_samples(check_seed("seed", message.seed), num, mode),
        mode=mode,
        class_name=check_text("class_name", message.class_name, info.limits.max_text_bytes),
        caption=check_text("caption", message.caption, info.limits.max_text_bytes, may_be_empty=False),
        attributes=_read_attributes(message.attributes, info.limits.max_text_bytes),
    )


def read_generate_request(message: pb.GenerateRequest, info: FamilyInfo) -> items.Item:
    """One prompt to images."""
    parameters = read_parameters(message.parameters, info, WorkClass.INTERACTIVE)
    num = check_int("parameters.n", message.parameters.n or 1, 1, info.limits.max_images)
    return items.Item(
        id="generate",
        parameters=replace(parameters, stop_after=Stage.IMAGE),
        samples=derive_samples(check_seed("parameters.seed", message.parameters.seed), num, Mode.CAPTION_ONLY),
        mode=Mode.CAPTION_ONLY,
        prompt=check_text("prompt", message.prompt, info.limits.max_text_bytes, may_be_empty=False),
    )


def read_parameters(message: pb.Parameters, info: FamilyInfo, work_class: WorkClass) -> items.Parameters:
    """Parameters with the family's defaults for what is not given."""
    defaults = info.defaults
    scale = message.guidance_scale if message.HasField("guidance_scale") else defaults.guidance_scale
    width, height = _read_size(message, info)
    return items.Parameters(
        steps=check_int("parameters.steps", message.steps or defaults.steps, 1, info.limits.max_steps),
        guidance_scale=check_float("parameters.guidance_scale", scale, 0.0, info.limits.max_guidance_scale),
        guidance_interval=_read_interval(message, defaults.guidance_interval),
        sampler=_read_sampler(message.sampler or defaults.sampler, info),
        width=width,
        height=height,
        negative_prompt=check_text("parameters.negative_prompt", message.negative_prompt, info.limits.max_text_bytes),
        determinism=DETERMINISMS.read("parameters.determinism", message.determinism, defaults.determinism),
        stop_after=STAGES.read("parameters.stop_after", message.stop_after, Stage.IMAGE),
        format=IMAGE_FORMATS.read("parameters.format", message.format, defaults.format),
        work_class=WORK_CLASSES.read("parameters.work_class", message.work_class, work_class),
        deadline_s=message.deadline_ms / 1000 if message.deadline_ms else None,
    )


def derive_samples(seed: int, num: int, mode: Mode) -> tuple[Sample, ...]:
    """`num` images from one seed, with the indices that a job would give them."""
    return tuple(Sample(*image_indices(mode, k), derive_seed(seed, k)) for k in range(num))


def derive_seed(seed: int, k: int) -> int:
    """The seed of image `k`: 53 bits of a hash, so that neighbouring seeds share no image."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{k}".encode()).digest()[:8], "big") & MAX_SEED


def _unary(info: FamilyInfo, stop_after: Stage, deadline_ms: int) -> items.Parameters:
    asked = pb.Parameters(stop_after=STAGES.write(stop_after), deadline_ms=deadline_ms)
    return read_parameters(asked, info, WorkClass.INTERACTIVE)


def _read_input(message: pb.Item, info: FamilyInfo, stop_after: Stage) -> tuple[bytes | None, str | None, str | None]:
    given = message.WhichOneof("input")
    if given is None:
        raise refuse("input", "one of image, caption and prompt must be given")
    if _ORDER.index(stop_after) < _ORDER.index(_ENTRY[given]):
        raise refuse("parameters.stop_after", f"an item that brings its {given} is already past {stop_after}")
    limits = info.limits
    if given == "image":
        return _check_image(message.image, info), None, None
    if given == "caption":
        return None, check_text("caption", message.caption, limits.max_text_bytes, may_be_empty=False), None
    return None, None, check_text("prompt", message.prompt, limits.max_text_bytes, may_be_empty=False)


def _check_image(image: bytes, info: FamilyInfo) -> bytes:
    check_int("image (bytes)", len(image), 1, info.limits.max_image_bytes)
    return image


def _read_attributes(given: Sequence[str], max_bytes: int) -> tuple[str, ...]:
    """The attributes, which have `max_bytes` together."""
    check_int("attributes (count)", len(given), 0, MAX_ATTRIBUTES)
    check_int("attributes (bytes)", sum(len(one.encode()) for one in given), 0, max_bytes)
    return tuple(check_text(f"attributes[{k}]", one, max_bytes, may_be_empty=False) for k, one in enumerate(given))


def _read_samples(message: pb.Item, mode: Mode, max_images: int) -> tuple[Sample, ...]:
    if not message.samples:
        num = check_int("parameters.n", message.parameters.n or 1, 1, max_images)
        return derive_samples(check_seed("parameters.seed", message.parameters.seed), num, mode)
    check_int("samples (count)", len(message.samples), 1, max_images)
    samples = tuple(_read_sample(k, sample) for k, sample in enumerate(message.samples))
    if len({(sample.prompt_index, sample.sample_index) for sample in samples}) < len(samples):
        raise refuse("samples", "two of them have the same prompt_index and sample_index")
    return samples


def _read_sample(k: int, message: pb.Sample) -> Sample:
    return Sample(
        check_int(f"samples[{k}].prompt_index", message.prompt_index, 0, MAX_INDEX),
        check_int(f"samples[{k}].sample_index", message.sample_index, 0, MAX_INDEX),
        check_seed(f"samples[{k}].seed", message.seed),
    )


def _read_mode(field: str, value: int, info: FamilyInfo) -> Mode:
    mode = MODES.read(field, value, Mode.CIP)
    if mode not in info.modes:
        raise refuse(field, f"{mode} is not among this family's modes: {', '.join(info.modes)}")
    return mode


def _read_sampler(sampler: str, info: FamilyInfo) -> str:
    if sampler not in info.samplers:
        raise refuse("parameters.sampler", f"must be one of {', '.join(info.samplers)}")
    return sampler


def _read_size(message: pb.Parameters, info: FamilyInfo) -> tuple[int, int]:
    size = (message.width or info.defaults.width, message.height or info.defaults.height)
    if size not in info.sizes:
        known = ", ".join(f"{width}x{height}" for width, height in info.sizes)
        raise refuse("parameters.width", f"{size[0]}x{size[1]} is not among this family's sizes: {known}")
    return size


def _read_interval(message: pb.Parameters, default: items.GuidanceInterval) -> items.GuidanceInterval:
    if not message.HasField("guidance_interval"):
        return default
    field = "parameters.guidance_interval"
    start = check_float(f"{field}.start", message.guidance_interval.start, 0.0, 1.0)
    stop = check_float(f"{field}.stop", message.guidance_interval.stop, 0.0, 1.0)
    if start >= stop:
        raise refuse(field, "start must be below stop")
    return items.GuidanceInterval(start, stop)
