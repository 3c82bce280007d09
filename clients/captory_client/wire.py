"""A job's items as messages, and what comes back as outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from captory_data.identity import Wanted
from captory_data.outcomes import WorkItem
from captory_data.spec import JobSpec
from captory_proto.v1 import captory_pb2 as pb


def mode_to_wire(mode: str) -> pb.Mode.ValueType:
    """`recap-short` is MODE_RECAP_SHORT."""
    return pb.Mode.Value(f"MODE_{mode.upper().replace('-', '_')}")


def parameters_to_wire(spec: JobSpec) -> pb.Parameters:
    """A job's parameters; each image brings its seed."""
    interval = spec.guidance_interval
    return pb.Parameters(
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        guidance_interval=pb.GuidanceInterval(start=interval[0], stop=interval[1]) if interval else None,
        sampler=spec.sampler,
        width=spec.width,
        height=spec.height,
        negative_prompt=spec.negative_prompt,
        determinism=pb.Determinism.Value(f"DETERMINISM_{spec.determinism.upper()}"),
        format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{spec.image_format.upper()}"),
    )


def items_to_wire(work: WorkItem, spec: JobSpec, limits: pb.Limits) -> Iterator[tuple[pb.Item, tuple[Wanted, ...]]]:
    """One item as messages of at most `max_images` images each, each with the images that it asks for."""
    for start in range(0, len(work.wanted), limits.max_images):
        wanted = work.wanted[start : start + limits.max_images]
        item = pb.Item(
            id=_wire_id(work.key, start),
            class_name=_clean(work.class_name),
            mode=mode_to_wire(spec.mode),
            parameters=parameters_to_wire(spec),
            samples=[
                pb.Sample(prompt_index=one.prompt_index, sample_index=one.sample_index, seed=one.seed) for one in wanted
            ],
            attributes=filter(None, map(_clean, work.attributes)),
        )
        _set_input(item, work, limits)
        yield item, wanted


def wire_ids(work: WorkItem, limits: pb.Limits) -> list[str]:
    """The ids of the messages that `items_to_wire` makes."""
    return [_wire_id(work.key, start) for start in range(0, len(work.wanted), limits.max_images)]


def sample_to_wire(wanted: Wanted) -> pb.Sample:
    """One image that is wanted."""
    return pb.Sample(prompt_index=wanted.prompt_index, sample_index=wanted.sample_index, seed=wanted.seed)


def _set_input(item: pb.Item, work: WorkItem, limits: pb.Limits) -> None:
    if work.image is not None:
        # One byte too many says as much to the server as all of them, and always fits into a message.
        item.image = work.image[: limits.max_image_bytes + 1]
    elif work.caption is not None:
        item.caption = _clean(work.caption)
    else:
        item.prompt = _clean(work.prompt or "")


def _clean(text: str) -> str:
    """On one line, and Unicode."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def _wire_id(key: str, start: int) -> str:
    """A key may be any path; an id on the wire may not."""
    return f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-{start}"
