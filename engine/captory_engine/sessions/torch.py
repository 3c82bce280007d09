"""PyTorch behind the Session contract: the reference on a CPU; compiled, with CUDA graphs by bucket, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from captory_engine.errors import BadModel, Unavailable
from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.checks import check_inputs, check_outputs
from captory_engine.sessions.options import SessionOptions, TorchOptions
from captory_engine.sessions.torch_arrays import TorchArrays, face
from captory_engine.sessions.torch_graphs import FixedBatch, bucket_of

# Of diffusers' UNets and autoencoders: together nearly all of their work.
REPEATED_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
MAX_SHAPES = 1024
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Settings:
    """`TorchOptions` with everything decided."""

    device: torch.device
    dtype: torch.dtype
    compile_mode: str
    compile_blocks: bool
    graphs: bool
    buckets: tuple[int, ...]

    @staticmethod
    def of(options: TorchOptions) -> Settings:
        """Decide by the device what the options leave open. Raises `BadModel` for a device that is not there."""
        device = _device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_gpu = device.type == "cuda"
        return Settings(
            device=device,
            dtype=DTYPES[options.dtype or ("bf16" if on_gpu else "fp32")],
            compile_mode=options.compile_mode,
            compile_blocks=options.compile_blocks,
            graphs=on_gpu if options.graphs is None else options.graphs,
            buckets=tuple(sorted(options.buckets)),
        )


class TorchSession:
    """A module whose forward takes and gives the declared arrays, batch first, floats as float32 whatever its weights.

    NumPy arrays in give NumPy arrays out; tensors of the session's device in give tensors there, without waiting.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_batch: int,
        digest: str = "",
        options: SessionOptions | None = None,
    ) -> None:
        options = options or SessionOptions()
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.max_batch = max_batch
        self.digest = digest
        self._settings = Settings.of(options.torch)
        self.backend = describe_backend(self._settings, options)
        self.arrays = TorchArrays(self._settings.device)
        if self.arrays.on_host:
            torch.set_num_threads(options.num_threads)
        self._module: nn.Module | None = _prepare(module, self._settings)
        self._pool = torch.cuda.graph_pool_handle() if self._graphs_on_gpu else None
        self._batches: dict[tuple[Any, ...], FixedBatch] = {}
        self._lock: AbstractContextManager[Any] = Lock() if self._settings.graphs else nullcontext()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one batch; see `Session.run`. Raises `OutOfMemory` when the batch does not fit the device."""
        rows = check_inputs(self, {name: face(value) for name, value in inputs.items()})
        module = self._module
        if module is None:
            raise Unavailable("SESSION_CLOSED", f"{self.name} is closed.")
        outputs = dict(zip((spec.name for spec in self.outputs), self._try(module, inputs), strict=True))
        check_outputs(self, {name: face(value) for name, value in outputs.items()}, rows)
        return outputs

    def computed_rows(self, rows: int) -> int:
        """See `DeviceSession`: the bucket's rows where batches have fixed sizes."""
        return min(bucket_of(self._settings.buckets, rows), self.max_batch) if self._settings.graphs else rows

    def close(self) -> None:
        """Free the weights and the graphs."""
        self._module = None
        self._batches.clear()

    @property
    def _graphs_on_gpu(self) -> bool:
        return self._settings.graphs and self._settings.device.type == "cuda"

    def _try(self, module: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """There and, where the inputs came from the host, back: a device's errors may show on either way."""
        on_device = isinstance(next(iter(inputs.values())), Tensor)
        try:
            with self.arrays.guard():
                here = {name: self.arrays.from_host(value) for name, value in inputs.items()}
                with self._lock, torch.no_grad():
                    results = self._compute(module, here)
                return results if on_device else tuple(self.arrays.to_host(value) for value in results)
        except RuntimeError as error:
            raise Unavailable("BACKEND_FAILED", f"{self.name} could not be run.") from error

    def _compute(self, module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        if not self._settings.graphs:
            results: tuple[Tensor, ...] = module(**inputs)
            return results
        shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
        rows = self.computed_rows(len(next(iter(inputs.values()))))
        key = (rows, *sorted(shapes.items()))
        if key not in self._batches:
            self._batches[key] = FixedBatch(module, inputs, rows, self._pool)
        return self._batches[key].run(inputs)


def describe_backend(settings: Settings, options: SessionOptions) -> str:
    """Return what `exact` determinism depends on: version, device, type of the weights, threads, graphs, compiler."""
    dtype = str(settings.dtype).removeprefix("torch.")
    on_gpu = settings.device.type == "cuda"
    device = torch.cuda.get_device_name(settings.device).replace(" ", "-") if on_gpu else "cpu"
    threads = "" if on_gpu else f" threads={options.num_threads}"
    compiled = f" compile={settings.compile_mode}" if settings.compile_mode else ""
    return f"torch {torch.__version__} {device} {dtype}{threads}{' graphs' if settings.graphs else ''}{compiled}"


def _device(name: str) -> torch.device:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built for the CPU only
        raise BadModel("DEVICE_MISSING", f"This torch has no device {name!r}.") from error
    return torch.device(name)


def _prepare(module: nn.Module, settings: Settings) -> nn.Module:
    module = module.eval().requires_grad_(False).to(settings.device, settings.dtype)
    for weights in module.parameters():
        if weights.ndim == 4:  # of convolutions
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    if settings.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if settings.compile_mode:
        _compile(module, settings)
    return module


def _compile(module: nn.Module, settings: Settings) -> None:
    blocks = [one for one in module.modules() if type(one).__name__ in REPEATED_BLOCKS]
    parts = blocks if settings.compile_blocks and blocks else [module]
    # every bucket is a shape of its own, for every block whose code is the same
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MAX_SHAPES
    for part in parts:
        part.compile(mode=settings.compile_mode, dynamic=False)
