"""The backends by name. Each factory imports its module only when it is called."""

from __future__ import annotations

from collections.abc import Callable

from captory_engine.errors import BadModel
from captory_engine.repository import ModelFolder
from captory_engine.sessions.base import Session
from captory_engine.sessions.options import SessionOptions

Factory = Callable[[ModelFolder, SessionOptions], Session]


def open_session(backend: str, model: ModelFolder, options: SessionOptions | None = None) -> Session:
    """Load `model` on `backend`; a backend whose packages are absent says which extra to install."""
    if backend not in BACKENDS:
        raise BadModel("BACKEND_UNKNOWN", f"There is no backend {backend!r}; there are {', '.join(sorted(BACKENDS))}.")
    factory, extra = BACKENDS[backend]
    try:
        return factory(model, options or SessionOptions())
    except ModuleNotFoundError as error:
        words = f"The backend {backend!r} needs the module {error.name!r}: pip install '{extra}'."
        raise BadModel("BACKEND_MISSING", words) from error


def _onnx(model: ModelFolder, options: SessionOptions) -> Session:
    from captory_engine.sessions.onnx import OnnxSession

    return OnnxSession(model, options)


def _fake(model: ModelFolder, options: SessionOptions) -> Session:
    from captory_engine.sessions.fake import FakeSession

    return FakeSession.of(model)


def _torch(model: ModelFolder, options: SessionOptions) -> Session:
    from captory_engine.sessions.torch_checkpoints import open_model_folder

    return open_model_folder(model, options)


def _triton(model: ModelFolder, options: SessionOptions) -> Session:
    from captory_engine.sessions.triton import TritonSession

    return TritonSession(model, options)


def _tensorrt(model: ModelFolder, options: SessionOptions) -> Session:
    from captory_engine.sessions.tensorrt import open_engine

    return open_engine(model, options)


# backend: (factory, what to install when a module is missing)
BACKENDS: dict[str, tuple[Factory, str]] = {
    "onnx": (_onnx, "captory"),
    "fake": (_fake, "captory"),
    "torch": (_torch, "captory[torch]"),
    "triton": (_triton, "captory"),
    "tensorrt": (_tensorrt, "captory[tensorrt]"),
}
