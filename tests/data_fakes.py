"""What the tests of `captory_data` share: small inputs, and a maker of results without a server."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from captory_data.batching import BatchLimits
from captory_data.identity import wanted_images
from captory_data.outcomes import Failure, Finished, ItemDone, Outcome, StageDone, Started, WorkItem
from captory_data.runner import run_job
from captory_data.source import open_source
from captory_data.spec import JobSpec
from captory_data.summary import JobSummary

MODELS = {"painter": "ab" * 32}
SMALL_BATCHES = BatchLimits(max_images=3, max_age_s=1e9)


def job_spec(**changes: Any) -> JobSpec:
    """A spec with some values changed."""
    values: dict[str, Any] = {"mode": "cip", "seed": 7, "steps": 4, "guidance_scale": 3.0, "sampler": "ddim"}
    return JobSpec(**values | {"width": 8, "height": 8} | changes)


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    """One image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, seed % 256)).save(buffer, kind)
    return buffer.getvalue()


def photo_folder(root: Path, classes: Iterable[str] = ("bird", "cat"), per_class: int = 3) -> Path:
    """A folder of class folders."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            (root / name / f"{k}.png").write_bytes(picture(number * 10 + k))
    return root


def make_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these members."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def finished(item: WorkItem, image_id: str, kind: str = "PNG") -> Finished:
    """An image that depends on its id alone."""
    number = int(image_id[:6], 16)
    words = item.caption or f"a caption of {item.key}"
    prompt = item.prompt or f"a photo of {item.class_name}, {words}"
    digest = hashlib.sha256(image_id.encode()).hexdigest()
    return Finished(
        item.key, image_id, picture(number, kind), words, prompt, MODELS, digest, 5, "truncate", "fake", "template"
    )


class Maker:
    """A well-behaved `Synthesize`. `spoil` may replace an item's outcomes; `at_item` is called before each."""

    def __init__(
        self,
        spoil: Callable[[WorkItem], list[Outcome] | None] = lambda item: None,
        at_item: Callable[[int], None] = lambda count: None,
        image_kind: str = "PNG",
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.calls = 0
        self.seen: list[WorkItem] = []
        self.most_open = 0
        self._spoil = spoil
        self._at_item = at_item
        self._kind = image_kind
        self._versions = versions or {"fake": "1"}

    async def __call__(self, items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        self.calls += 1
        yield Started(MODELS, "fake", "drawn, not photographed", self._versions)
        async for item in items:
            self._at_item(len(self.seen))
            self.seen.append(item)
            for outcome in self._outcomes(item):
                yield outcome

    def _outcomes(self, item: WorkItem) -> list[Outcome]:
        if (spoiled := self._spoil(item)) is not None:
            return spoiled
        images: list[Outcome] = [finished(item, wanted.id, self._kind) for wanted in item.wanted]
        return [StageDone(item.key, "caption"), *images, ItemDone(item.key, {"caption": 0.5, "image": 1.0})]


def failing(item: WorkItem, reason: str = "invalid_image", *, dropped: bool = False) -> list[Outcome]:
    """The outcomes of an item that cannot be done."""
    return [Failure(item.key, None, reason, f"{item.key} cannot be used", dropped), ItemDone(item.key)]


def run(
    input_path: Path, out: Path, maker: Maker | None = None, spec: JobSpec | None = None, **options: Any
) -> JobSummary:
    """One whole run, without waiting for the disk."""
    with patch("os.fsync"), patch("captory_data.database.SYNCHRONOUS", "OFF"):
        return run_durably(input_path, out, maker, spec, **options)


def run_durably(
    input_path: Path, out: Path, maker: Maker | None = None, spec: JobSpec | None = None, **options: Any
) -> JobSummary:
    """One whole run."""
    options.setdefault("batch_limits", SMALL_BATCHES)
    source = open_source(input_path, classes=options.pop("classes", None), exclude=out)
    try:
        return asyncio.run(run_job(source, spec or job_spec(), out, maker or Maker(), **options))
    finally:
        source.close()


def requested(input_path: Path, spec: JobSpec) -> set[str]:
    """The ids of every image that a job asks for."""
    source = open_source(input_path)
    try:
        return {wanted.id for item in source for wanted in wanted_images(spec, item.key)}
    finally:
        source.close()
