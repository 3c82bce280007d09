"""One image of a dataset, painted again from its record."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from captory_client.errors import reason_of
from captory_client.settle import check
from captory_client.wire import mode_to_wire, parameters_to_wire, sample_to_wire
from captory_client.workshop import Workshop
from captory_data.dataset import find_image, stored_job
from captory_data.errors import DataError, SpecError
from captory_data.identity import Wanted
from captory_data.records import Record
from captory_data.spec import JobSpec
from captory_proto.v1 import captory_pb2 as pb

PAINTED_AS_IT_IS = "basic"  # any mode: a prompt of one's own is the prompt
MAX_DRIFT = 2  # of 255 levels, between batches of different sizes


@dataclass(frozen=True, slots=True)
class Comparison:
    """The image now and then. `max_difference` is of 255 levels."""

    image: bytes
    same_bytes: bool
    same_pixels: bool
    max_difference: int
    determinism: str

    @property
    def kept(self) -> bool:
        """Whether the promise holds: the same bytes in `exact`; in `stable`, pixels may drift by rounding."""
        return self.same_bytes or (self.determinism == "stable" and self.max_difference <= MAX_DRIFT)


async def reproduce(out: Path, image_id: str, workshop: Workshop) -> Comparison:
    """Paint the image `image_id` of the dataset `out` again and compare.

    Raises `DataError` when there is no such image, and `SpecError` when the server has other models.
    """
    record, then = find_image(out, image_id)
    info = await workshop.info()
    spec = _spec_of(out, record)
    check(spec, info)
    _compare_models(record, info)
    image = await _paint(record, spec, workshop)
    return _compare(image.data, then, image.provenance.pixel_sha256 == record.pixel_sha256, record.determinism)


def _spec_of(out: Path, record: Record) -> JobSpec:
    job = stored_job(out)
    if job is None:
        raise DataError(f"{out} holds no job")
    return replace(job.spec, mode=PAINTED_AS_IT_IS)


def _compare_models(record: Record, info: pb.ServerInfo) -> None:
    """Only those that both have: what wrote the prompt need not be there to paint it."""
    there = {model.name: model.sha256 for model in info.models}
    compared = record.models.keys() & there.keys() or record.models.keys()
    different = sorted(name for name in compared if record.models[name] != there.get(name))
    if different:
        raise SpecError(f"the image was made with other models than the server's: {', '.join(different)}")


async def _paint(record: Record, spec: JobSpec, workshop: Workshop) -> pb.ImageResult:
    wanted = Wanted(record.id, record.prompt_index, record.sample_index, record.seed)
    item = pb.Item(
        id=record.id,
        prompt=record.prompt,
        class_name=record.class_name,
        mode=mode_to_wire(spec.mode),
        parameters=parameters_to_wire(spec),
        samples=[sample_to_wire(wanted)],
    )
    client = await workshop.client()
    painted = [response async for response in client.synthesize([item])]
    for response in painted:
        if response.WhichOneof("event") == "image":
            return response.image
    status = next((one.failure.status for one in painted if one.HasField("failure")), painted[-1].done.status)
    raise DataError(f"the server did not paint it: {status.message} ({reason_of(status)})")


def _compare(now: bytes, then: bytes, same_pixels: bool, determinism: str) -> Comparison:
    difference = 0 if same_pixels else int(np.abs(_pixels(now) - _pixels(then)).max())
    return Comparison(now, now == then, same_pixels, difference, determinism)


def _pixels(image: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"), np.int16)
