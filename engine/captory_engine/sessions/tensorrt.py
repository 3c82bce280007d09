"""TensorRT engines behind the Session contract: those that were built on this machine, replayed as CUDA graphs.

An engine is a module over tensors of its GPU, so the rest is the `torch` backend's: arrays that stay there, batches of
fixed sizes, out of memory told as such. TensorRT 10 or 11.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import tensorrt as trt
import torch
from torch import Tensor, nn

from captory_engine.errors import BadModel
from captory_engine.repository import ModelFolder
from captory_engine.sessions.options import SessionOptions
from captory_engine.sessions.tensorrt_plans import Key, Machine, Record, Shape, engines_root, load_plan
from captory_engine.sessions.torch import TorchSession

# Of TensorRT's severities: internal error, error, warning, information, and what is said of every kernel.
LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.DEBUG, logging.DEBUG)
MAX_ERRORS = 4  # that are kept
NO_MEMORY = ("out of memory", "outofmemory")  # TensorRT tells of it in words only
log = logging.getLogger(__name__)


class Listener(trt.ILogger):
    """Puts TensorRT's words into our log, where its own logger prints them on stdout; the last errors are kept."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: deque[str] = deque(maxlen=MAX_ERRORS)

    def log(self, severity: Any, msg: str) -> None:
        """TensorRT calls this, from any thread."""
        level = LEVELS[int(severity)]
        log.log(level, "TensorRT: %s", msg)
        if level == logging.ERROR:
            self._errors.append(msg)

    def told(self) -> str:
        """The errors since this was asked the last time."""
        words = "; ".join(self._errors)
        self._errors.clear()
        return words or "it does not say why"


LISTENER = Listener()  # TensorRT wants one for all that a process does with it


def open_engine(model: ModelFolder, options: SessionOptions) -> TorchSession:
    """The session of a model's engine. Raises `BadModel` where there is none for this machine, or it does not hold."""
    settings = options.tensorrt
    machine = this_machine(settings.device)
    plan, record = load_plan(engines_root(settings.engines), Key.of(model, machine, settings.precision))
    with torch.cuda.device(settings.device):
        module = EngineModule(model, plan, record, torch.device(settings.device))
    on_gpu = replace(options.torch, device=settings.device, dtype="fp32", compile_mode="", graphs=True)
    session = TorchSession(
        model.name,
        module,
        model.inputs,
        model.outputs,
        max_batch=min(model.max_batch, record.max_rows),
        digest=model.digest,
        options=replace(options, torch=on_gpu),
    )
    session.backend = describe_backend(record)
    return session


def this_machine(device: str) -> Machine:
    """What an engine of `device` is bound to. Raises `BadModel` where it is no GPU that torch can use."""
    try:
        major, minor = torch.cuda.get_device_capability(device)
        return Machine(torch.cuda.get_device_name(device), f"{major}.{minor}", trt.__version__)
    except (RuntimeError, AssertionError, ValueError) as error:  # of no driver, of a CPU's torch, of a device's name
        raise BadModel("DEVICE_MISSING", f"TensorRT needs an NVIDIA GPU; this torch has no {device!r}.") from error


def describe_backend(record: Record) -> str:
    """Return what `exact` determinism depends on: version, device, types, and which kernels the builder chose."""
    gpu = record.key.gpu.replace(" ", "-")
    return f"tensorrt {record.key.tensorrt} {gpu} {record.key.precision} graphs plan={record.sha256[:8]}"


class Bound(NamedTuple):
    """An execution context of fixed shapes, with the memory that it works in and the outputs that it writes."""

    context: Any
    outputs: tuple[Tensor, ...]
    scratch: Tensor


class EngineModule(nn.Module):
    """A plan as a function of tensors on its GPU; outputs are its own, and each call of equal shapes rewrites them.

    Every combination of shapes has an execution context, as CUDA graphs want it; they share the memory that they work
    in, so calls must follow one another on the device. The GPU must be the current one, here and in every call.
    """

    def __init__(self, model: ModelFolder, plan: bytes, record: Record, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._outputs = model.outputs
        self._record = record
        self._bound: dict[tuple[tuple[str, Shape], ...], Bound] = {}
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._runtime = trt.Runtime(LISTENER)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            words = f"TensorRT cannot load the engine of model {model.name!r}: {LISTENER.told()}."
            raise BadModel("ENGINE_UNREADABLE", words)
        _check_signature(model, self._engine)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; inputs are contiguous, and shaped as a profile has them."""
        key = tuple(sorted((name, tuple(value.shape)) for name, value in inputs.items()))
        if key not in self._bound:
            self._bound[key] = self._bind(dict(key))
        bound = self._bound[key]
        for name, value in inputs.items():
            _must(bound.context.set_tensor_address(name, value.data_ptr()))
        _must(bound.context.execute_async_v3(self._stream))
        return bound.outputs

    @property
    def _stream(self) -> int:
        handle: int = torch.cuda.current_stream(self._device).cuda_stream
        return handle

    def _bind(self, shapes: Mapping[str, Shape]) -> Bound:
        profile = self._record.profile_of(shapes)
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        _must(context is not None)
        _must(context.set_optimization_profile_async(profile, self._stream))
        _must(all(starmap(context.set_input_shape, shapes.items())))
        num_bytes = context.update_device_memory_size_for_shapes()
        if num_bytes > self._scratch.numel():  # what is bound already keeps its own
            self._scratch = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        outputs = tuple(self._output(context, spec.name, spec.dtype) for spec in self._outputs)
        return Bound(context, outputs, self._scratch)

    def _output(self, context: Any, name: str, dtype: np.dtype[Any]) -> Tensor:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        output = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device=self._device)
        _must(context.set_tensor_address(name, output.data_ptr()))
        return output


def _check_signature(model: ModelFolder, engine: Any) -> None:
    """Refuse an engine whose tensors are not exactly those of the model's configuration, in name and type."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
    declared = {spec.name: spec.dtype for spec in (*model.inputs, *model.outputs)}
    if found != declared:
        words = f"declared are {_words(declared)}, but the engine has {_words(found)}"
        raise BadModel("ENGINE_SIGNATURE", f"Model {model.name!r}: {words}.")


def _words(types: Mapping[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(types.items()))


def _must(done: bool) -> None:
    """Where TensorRT did not do something, raise what torch would: its own error for memory, else `RuntimeError`."""
    if not done:
        words = LISTENER.told()
        kind = torch.OutOfMemoryError if any(sign in words.lower() for sign in NO_MEMORY) else RuntimeError
        raise kind(f"TensorRT refused: {words}")
