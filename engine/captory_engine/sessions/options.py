"""What a backend is told when it opens a model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

CPU_PROVIDER = "CPUExecutionProvider"  # of ONNX Runtime
TORCH_DTYPES = ("fp32", "fp16", "bf16")
TENSORRT_PRECISIONS = ("graph", "fp16", "bf16")
TORCH_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value and value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}, or empty")


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How the `torch` backend computes. What is left empty follows the device, a GPU if there is one.

    `device` is torch's name of it. `dtype`: fp32, fp16 or bf16; empty: bf16 on a GPU, fp32 on a CPU. `compile_mode` is
    torch.compile's; empty: not compiled; `compile_blocks` compiles the blocks that repeat instead of the whole, which
    takes seconds instead of minutes. `graphs`: batches of fixed sizes, the `buckets`, which a GPU replays as CUDA
    graphs; None: on a GPU only. `checkpoints`: the root of the weights; None: the checkout's own. Raises `ValueError`
    for a type, a mode or a bucket that cannot be.
    """

    device: str = ""
    dtype: str = ""
    compile_mode: str = ""
    compile_blocks: bool = True
    graphs: bool | None = None
    buckets: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        _check("dtype", self.dtype, TORCH_DTYPES)
        _check("compile_mode", self.compile_mode, TORCH_COMPILE_MODES)
        if any(rows < 1 for rows in self.buckets):
            raise ValueError("buckets must be of at least one row")


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """Where the `triton` backend finds its server, `HOST:PORT` of its gRPC port, and how long it waits for it.

    Work that finds nobody there waits for up to `patience_s` in all; an answer may take `timeout_s`.
    `shared_memory`: tensors are laid down rather than sent; None: where Triton is on this host and can map them.
    Raises `ValueError` for what is no address, and for times that are not above 0.
    """

    address: str = "127.0.0.1:8001"
    patience_s: float = 30.0
    timeout_s: float = 60.0
    shared_memory: bool | None = None

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{self.address!r} is not HOST:PORT, with a port from 1 to 65535")
        if not (self.patience_s > 0 and self.timeout_s > 0):
            raise ValueError("patience_s and timeout_s must be above 0")


@dataclass(frozen=True, slots=True)
class TensorRtOptions:
    """Which engines the `tensorrt` backend takes; ONNX Runtime's TensorRT provider builds its own by the same.

    `precision`: fp16 or bf16 for graphs of fp32, or `graph` for the graph's own types; a graph that is typed already
    (fp16, quantised) keeps its types. `engines`: the root of the engines; None: in the user's cache. `device`: torch's
    name of the GPU, which ONNX Runtime's CUDA provider uses, too. Raises `ValueError` for what none of these can be.
    """

    precision: str = "fp16"
    engines: Path | None = None
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.precision not in TENSORRT_PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(TENSORRT_PRECISIONS)}")
        if not re.fullmatch(r"cuda(:\d{1,3})?", self.device):
            raise ValueError(f"device is {self.device!r}; it must be cuda, or cuda:NUMBER")

    @property
    def gpu(self) -> int:
        """The GPU's number, the first where `device` has none."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Resolved options of a session; `providers` are ONNX Runtime's, in the order of preference.

    `spin` lets idle threads burn CPU to wake sooner: good for one session alone, bad for several on few cores.
    """

    num_threads: int = field(default_factory=available_cpus)
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    spin: bool = False
    torch: TorchOptions = TorchOptions()
    triton: TritonOptions = TritonOptions()
    tensorrt: TensorRtOptions = TensorRtOptions()
