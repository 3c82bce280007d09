"""Ways to run one and the same UNet, in the order in which they are tried."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from captory_bench.gpu.fp8 import use_fp8
from captory_bench.gpu.setup import Setup
from captory_engine.sessions.options import SessionOptions, TorchOptions

AUTOTUNED = "max-autotune-no-cudagraphs"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way; one on 8-bit floats is never chosen. `attention`: flash, cudnn, or torch's choice.

    With less than `needs_s` of the budget left, for trying it and then measuring every batch, it is not begun.
    """

    name: str
    graphs: bool = True
    compile_mode: str = ""
    compile_blocks: bool = True
    fused_qkv: bool = False
    fp8: bool = False
    attention: str = ""
    needs_s: float = 20.0


VARIANTS = (
    Variant("channels-last", graphs=False),
    Variant("graphs"),
    Variant("graphs, cudnn attention", attention="cudnn"),
    Variant("graphs, fused qkv", fused_qkv=True),
    Variant("graphs, compiled blocks", compile_mode="default", needs_s=90.0),
    Variant("graphs, compiled blocks, fused qkv", compile_mode="default", fused_qkv=True, needs_s=110.0),
    Variant("graphs, compiled blocks, fp8 linears", compile_mode="default", fp8=True, needs_s=120.0),
    Variant("graphs, compiled blocks, autotuned", compile_mode=AUTOTUNED, needs_s=300.0),
    Variant("graphs, compiled whole", compile_mode="default", compile_blocks=False, needs_s=400.0),
)
PLAIN = VARIANTS[0]
GRAPHS = VARIANTS[1]


def prepared(unet: Any, variant: Variant) -> Any:
    """A copy of the UNet for the variant to change."""
    own = copy.deepcopy(unet)
    if variant.fused_qkv:
        own.fuse_qkv_projections()
    if variant.fp8:
        use_fp8(own)
    return own


def options_of(variant: Variant, setup: Setup, buckets: tuple[int, ...]) -> SessionOptions:
    """The engine's options for the variant."""
    settings = TorchOptions(
        device=str(setup.device),
        dtype=setup.dtype,
        graphs=variant.graphs,
        compile_mode=variant.compile_mode,
        compile_blocks=variant.compile_blocks,
        buckets=buckets,
    )
    return SessionOptions(num_threads=setup.num_threads, torch=settings)


@contextmanager
def attention(name: str) -> Iterator[None]:
    """Let scaled dot-product attention choose only the kernel named, or the plain one where that cannot serve."""
    switches = torch.backends.cuda
    before = switches.flash_sdp_enabled(), switches.cudnn_sdp_enabled(), switches.mem_efficient_sdp_enabled()
    if name:
        _enable(name == "flash", name == "cudnn", False)
    try:
        yield
    finally:
        _enable(*before)


def _enable(flash: bool, cudnn: bool, memory_efficient: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_mem_efficient_sdp(memory_efficient)
