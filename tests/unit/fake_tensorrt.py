"""As much of the module `tensorrt` as building, loading and running an engine calls, and a record of the calls.

There is one kernel, that of `tiny_models.write_scaler`, over addresses in this process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ERROR = 1
SAID = {
    "build": "Error Code 10: Internal Error (Could not find any implementation for node Conv_0.)",
    "deserialize": "Error Code 1: Serialization (Serialization assertion plan->header.magicTag == kPLAN_MAGIC failed.)",
    "memory": "[executionContext.cpp::initialize] Error Code 2: OutOfMemory (Requested size was 256 bytes.)",
    "context": "IRuntime::createExecutionContext: Error Code 3: API Usage Error",
    "execute": "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (out of memory)",
}


class Fake(ModuleType):
    """The module. `faults` are what is to fail: those of `SAID`, and parse, profile and cache.

    `calls` are the builder's, `contexts` those that were made, `gpus` those that were current when TensorRT did
    something that depends on it.
    """

    __version__ = "10.13.3.9"

    def __init__(self, *faults: str) -> None:
        super().__init__("tensorrt")
        self.faults = set(faults)
        self.calls: list[tuple[Any, ...]] = []
        self.contexts: list[Context] = []
        self.signature: dict[str, Any] = {}
        self.gpu = ""
        self.gpus: set[str] = set()

    class NetworkDefinitionCreationFlag(IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class ExecutionContextAllocationStrategy(IntEnum):
        STATIC = 0
        USER_MANAGED = 2

    class ILogger:
        def log(self, severity: int, msg: str) -> None:
            raise NotImplementedError

    def nptype(self, dtype: Any) -> Any:
        return np.dtype(dtype).type

    def Builder(self, logger: Any) -> Builder:
        return Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Parser:
        return Parser(self)

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    @contextmanager
    def device(self, gpu: Any) -> Iterator[None]:
        """In the place of `torch.cuda.device`."""
        before, self.gpu = self.gpu, str(gpu)
        try:
            yield
        finally:
            self.gpu = before

    def does(self, what: str, logger: Any = None) -> bool:
        """Whether something that depends on the GPU is done; why not, the logger is told."""
        self.gpus.add(self.gpu)
        if what in self.faults:
            logger.log(ERROR, SAID[what])
        return what not in self.faults


class Builder:
    def __init__(self, fake: Fake, logger: Any) -> None:
        self._fake = fake
        self._logger = logger

    def create_network(self, flags: int) -> str:
        self._fake.calls.append(("network", flags))
        return "network"

    def create_builder_config(self) -> Config:
        return Config(self._fake)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: str, config: Config) -> memoryview | None:
        self._fake.calls.append(("build", network, [profile.shapes for profile in config.profiles], config.cache))
        return memoryview(b"a plan") if self._fake.does("build", self._logger) else None


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, best: Any, largest: Any) -> None:
        self.shapes[name] = (least, best, largest)


class Config:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.profiles: list[Profile] = []
        self.cache = b""

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return -1 if "profile" in self._fake.faults else len(self.profiles) - 1

    def create_timing_cache(self, known: bytes) -> Cache:
        return Cache(known)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content and "cache" in self._fake.faults:
            return False
        self.cache = cache.content
        return True

    def get_timing_cache(self) -> Cache:
        return Cache(self.cache + b".")


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class Parser:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.num_errors = len(fake.faults & {"parse"})

    def parse_from_file(self, path: str) -> bool:
        self._fake.calls.append(("parse", Path(path).read_bytes()))
        return "parse" not in self._fake.faults

    def get_error(self, index: int) -> Parser:
        return self

    def desc(self) -> str:
        return "no importer registered for op: Einsumm"


class Runtime:
    def __init__(self, fake: Fake, logger: Any) -> None:
        self._fake = fake
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return Engine(self._fake, self._logger) if self._fake.does("deserialize", self._logger) else None


class Engine:
    def __init__(self, fake: Fake, logger: Any) -> None:
        self._fake = fake
        self._logger = logger
        self._signature = fake.signature
        self.num_io_tensors = len(fake.signature)

    def get_tensor_name(self, index: int) -> str:
        return list(self._signature)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._signature[name]

    def create_execution_context(self, strategy: int) -> Context | None:
        assert strategy == Fake.ExecutionContextAllocationStrategy.USER_MANAGED
        if not all(self._fake.does(what, self._logger) for what in ("memory", "context")):
            return None
        self._fake.contexts.append(Context(self._fake, self._logger))
        return self._fake.contexts[-1]


class Context:
    """`memory` is where it works, and how much it was given: 256 bytes a row are needed."""

    def __init__(self, fake: Fake, logger: Any) -> None:
        self._fake = fake
        self._logger = logger
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.profile = -1
        self.memory = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 256 * self._shapes["x"][0]

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[{"y": "x"}.get(name, name)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self._fake.does("execute", self._logger):
            return False
        x, scale, y = (self._at(name) for name in ("x", "scale", "y"))
        y[:] = x * scale[:, None, None]
        return True

    def _at(self, name: str) -> Any:
        shape = self.get_tensor_shape(name)
        values = (ctypes.c_float * prod(shape)).from_address(self._addresses[name])
        return np.frombuffer(values, np.float32).reshape(shape)
