"""Triton's module for models in Python, as far as ours use it, without a server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@dataclass
class Tensor:
    tensor_name: str
    array: np.ndarray

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError:
    INVALID_ARG = 3
    CANCELLED = 1

    def __init__(self, message: str, code: int = 0) -> None:
        self.message, self.code = message, code


class TritonModelException(Exception):  # noqa: N818
    """As Triton's."""


@dataclass
class InferenceResponse:
    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error.message
        return {tensor.tensor_name: tensor.array for tensor in self.output_tensors}


@dataclass
class Request:
    """A request."""

    arrays: Mapping[str, np.ndarray]
    wanted: Sequence[str] = ()
    cancelled: bool = False

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.arrays.items()]

    def requested_output_names(self) -> set[str]:
        return set(self.wanted)

    def is_cancelled(self) -> bool:
        return self.cancelled


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import triton_python_backend_utils` find the names above."""
    module = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse = Tensor, InferenceResponse  # type: ignore[attr-defined]
    module.TritonError, module.TritonModelException = TritonError, TritonModelException  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = _input  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def load(path: Path) -> Any:
    """Run a model's file as Triton does, by its path."""
    spec = importlib.util.spec_from_file_location(f"triton_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _input(request: Request, name: str) -> Tensor:
    return Tensor(name, request.arrays[name])
