"""As much of the module `tensorrt` as building and loading an engine calls; no kernels, but a record of every call."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


class Fake(ModuleType):
    """The module. `faults` are what is to fail: parse, profile, build, deserialize or cache."""

    __version__ = "10.13.3.9"

    def __init__(self, *faults: str) -> None:
        super().__init__("tensorrt")
        self.faults = set(faults)
        self.calls: list[tuple[Any, ...]] = []
        self.signature: dict[str, Any] = {}

    class NetworkDefinitionCreationFlag(IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class Logger:
        WARNING = 2

        def __init__(self, severity: int) -> None:
            pass

    def nptype(self, dtype: Any) -> Any:
        return np.dtype(dtype).type

    def Builder(self, logger: Any) -> Builder:
        return Builder(self)

    def OnnxParser(self, network: Any, logger: Any) -> Parser:
        return Parser(self)

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self)


class Builder:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def create_network(self, flags: int) -> str:
        self._fake.calls.append(("network", flags))
        return "network"

    def create_builder_config(self) -> Config:
        return Config(self._fake)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: str, config: Config) -> memoryview | None:
        self._fake.calls.append(("build", network, [profile.shapes for profile in config.profiles], config.cache))
        return None if "build" in self._fake.faults else memoryview(b"a plan")


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
        return "no plugin for MatMulNBits"


class Runtime:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return None if "deserialize" in self._fake.faults else Engine(self._fake.signature)


class Engine:
    def __init__(self, signature: dict[str, Any]) -> None:
        self._signature = signature
        self.num_io_tensors = len(signature)

    def get_tensor_name(self, index: int) -> str:
        return list(self._signature)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._signature[name]
