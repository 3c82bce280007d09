"""What a job is: the parameters that every one of its images shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from captory_data.errors import SpecError

WHOLE_SCHEDULE = (0.0, 1.0)
MODES = (
    *("basic", "cip", "caption-only", "recap-short", "recap-long", "recap-mix", "rewrite", "face", "closed-loop"),
    *("shuffled", "cross-class"),
)
CHOICES = {
    "mode": MODES,
    "image_format": ("png", "webp"),
    "output_format": ("webdataset", "imagefolder", "parquet"),
    "determinism": ("stable", "exact"),
}
MAX_PER_IMAGE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job's parameters, every value resolved. Two jobs with equal specs make the same images."""

    mode: str
    seed: int
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    guidance_interval: tuple[float, float] | None = None
    negative_prompt: str = ""
    per_image: int = 1
    family: str = "picto"
    image_format: str = "png"
    determinism: str = "stable"
    output_format: str = "webdataset"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SpecError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("steps", "width", "height", "per_image"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.per_image > MAX_PER_IMAGE:
            raise SpecError(f"per_image: at most {MAX_PER_IMAGE}, not {self.per_image}")
        if not all(math.isfinite(value) for value in (self.guidance_scale, *(self.guidance_interval or ()))):
            raise SpecError("guidance_scale and guidance_interval must be finite numbers")

    def canonical(self) -> dict[str, Any]:
        """Every field in one normal form: numbers without a fraction are integers, no interval is the whole one."""
        values = asdict(self)
        values["guidance_scale"] = normal_number(self.guidance_scale)
        values["guidance_interval"] = [normal_number(value) for value in self.guidance_interval or WHOLE_SCHEDULE]
        return values

    @classmethod
    def from_canonical(cls, values: Mapping[str, Any]) -> JobSpec:
        """The spec that `canonical` describes."""
        start, stop = values["guidance_interval"]
        interval = None if (start, stop) == WHOLE_SCHEDULE else (float(start), float(stop))
        return cls(**{**values, "guidance_interval": interval})

    def difference(self, other: JobSpec) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, each with this spec's value and the other's."""
        return differing(self.canonical(), other.canonical())


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ (or that one side lacks), sorted, each with both values."""
    keys = sorted({*ours, *theirs})
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def normal_number(value: float) -> int | float:
    """One form for each number: 1 and 1.0 are the same, and so are 0.0 and -0.0."""
    return int(value) if float(value).is_integer() else float(value)
