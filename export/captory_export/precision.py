"""fp32, fp16 and int8: what an export keeps weights in, and what must hold of it then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple


class Precision(StrEnum):
    """What weights are kept in. Inputs and outputs of every graph stay fp32.

    fp16 is computed in, too, where no activation overflows. int8 is of the weights of token decoders alone, a scale for
    every 32, so that no row depends on its mates; other graphs stay fp32.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Bounds(NamedTuple):
    """What holds of an export of one precision against the checkpoint.

    `difference` is the largest, over the largest value there is or 1; `same_texts` the share of greedy texts that are
    the same.
    """

    difference: float
    cosine: float
    psnr_db: float
    same_texts: float


BOUNDS = {
    Precision.FP32: Bounds(difference=1e-3, cosine=0.99999, psnr_db=60.0, same_texts=1.0),
    Precision.FP16: Bounds(difference=3e-2, cosine=0.999, psnr_db=35.0, same_texts=0.95),
    Precision.INT8: Bounds(difference=0.3, cosine=0.99, psnr_db=60.0, same_texts=0.8),
}


def faults(figures: Mapping[str, Any], precision: Precision) -> Sequence[str]:
    """Which bounds of the precision the figures break, in words; NaN breaks all, what is not there breaks none."""
    bounds = BOUNDS[precision]
    broken = {name: not figures[name] >= bound for name, bound in bounds._asdict().items() if name in figures}
    broken["difference"] = not figures.get("difference", 0.0) <= bounds.difference
    return [f"{name} is {figures[name]:.6g}, not {getattr(bounds, name):g}" for name, is_so in broken.items() if is_so]
