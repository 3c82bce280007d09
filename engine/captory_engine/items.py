"""What goes in and what comes out of the pipeline: plain frozen values, no wire, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    """How a prompt is made from a class name and a caption (methods.md; docs/methods.md).

    In the control arms `shuffled` and `cross-class` the item brings another image's picture or caption.
    """

    BASIC = "basic"
    CIP = "cip"
    CAPTION_ONLY = "caption-only"
    RECAP_SHORT = "recap-short"
    RECAP_LONG = "recap-long"
    RECAP_MIX = "recap-mix"
    REWRITE = "rewrite"
    FACE = "face"
    CLOSED_LOOP = "closed-loop"
    SHUFFLED = "shuffled"
    CROSS_CLASS = "cross-class"


class Stage(StrEnum):
    """Where an item leaves the pipeline."""

    CAPTION = "caption"
    PROMPT = "prompt"
    IMAGE = "image"


class Determinism(StrEnum):
    """`stable`: same noise and prompt, pixels may drift by rounding. `exact`: byte-identical in any company."""

    STABLE = "stable"
    EXACT = "exact"


class ImageFormat(StrEnum):
    """Lossless formats of finished images."""

    PNG = "png"
    WEBP = "webp"


class WorkClass(StrEnum):
    """How items share the device."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class GuidanceInterval:
    """Shares of the schedule, 0 its start (pure noise) and 1 its end, between which guidance applies.

    Source: Kynkäänniemi et al. 2024, arXiv 2404.07724.
    """

    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True, slots=True)
class Parameters:
    """How images are painted. Every value is resolved: no defaults are left to fill in."""

    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    guidance_interval: GuidanceInterval = GuidanceInterval()
    negative_prompt: str = ""
    determinism: Determinism = Determinism.STABLE
    stop_after: Stage = Stage.IMAGE
    format: ImageFormat = ImageFormat.PNG
    work_class: WorkClass = WorkClass.BULK
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image wanted: which prompt of the item, which image of that prompt, and its seed (below 2**53)."""

    prompt_index: int
    sample_index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of a client's work: exactly one of `image`, `caption` and `prompt` is given.

    `image` holds encoded bytes. A caption enters after the captioner, a prompt at the painter. `attributes` stand
    beside any of them, for a mode that makes its prompt of them.
    """

    id: str
    parameters: Parameters
    samples: tuple[Sample, ...]
    mode: Mode = Mode.CIP
    class_name: str = ""
    image: bytes | None = None
    caption: str | None = None
    prompt: str | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Captioned:
    """The captioner's words for the item, once an item and caption length."""

    text: str
    length: str
    token_count: int


@dataclass(frozen=True, slots=True)
class Prompted:
    """One prompt of the item. `writer` is client, template, model, or fallback (the model's words were refused)."""

    text: str
    prompt_index: int
    token_count: int
    writer: str = "template"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything that is needed to make one image again.

    `mode_sha256` is that of the mode's instruction file, `attributes` those of the item where the mode has a use for
    them. In a closed loop `synthetic_captions` are those of the drafts, in order, and the prompt is made of the last.
    """

    caption: str
    prompt: str
    class_name: str
    mode: Mode
    sample: Sample
    parameters: Parameters
    family: str
    models: dict[str, str]
    token_count: int
    token_policy: str
    pixel_sha256: str
    backend: str
    writer: str = "template"
    mode_sha256: str = ""
    attributes: tuple[str, ...] = ()
    synthetic_captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Painted:
    """One finished image: encoded bytes and where they came from."""

    data: bytes
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Failed:
    """One image that will not come, with its error's reason and gRPC status. `dropped` is by policy, no fault."""

    sample: Sample
    reason: str
    message: str
    dropped: bool = False
    status: str = "DATA_LOSS"


@dataclass(frozen=True, slots=True)
class Done:
    """The item's last event. `stage_seconds` counts from arrival to the end of each stage."""

    num_images: int
    num_failed: int
    stage_seconds: dict[str, float] = field(default_factory=dict)


Event = Captioned | Prompted | Painted | Failed | Done
