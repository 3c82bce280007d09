"""Triton: caption, then paint, as two models with dynamic batching behind a real `tritonserver`, over gRPC."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.workload import Painting, Photo
from captory_bench.peers.children import Child
from captory_bench.peers.contenders import Conditions, PeerUnavailable, PerRequest, Reply
from captory_bench.peers.trial import Setting, best_of, candidates
from captory_bench.peers.triton_repository import CAPTIONER, MODELS, PAINTER, write_repository
from captory_engine.errors import Unavailable
from captory_engine.family import Painter, find_family
from captory_export.triton.host import Installation, find_triton, triton_server

HOW = (
    "two models in Python, caption and paint, each with dynamic batching and an instance a worker; it closes the next "
    "batches while all instances are busy, so under Poisson arrivals they are small"
)
_TYPES: dict[str, tuple[str, Any]] = {  # by the configuration's: the wire's and NumPy's
    "TYPE_STRING": ("BYTES", np.object_),
    "TYPE_INT32": ("INT32", np.int32),
    "TYPE_INT64": ("INT64", np.int64),
    "TYPE_FP32": ("FP32", np.float32),
    "TYPE_FP64": ("FP64", np.float64),
}


@dataclass(frozen=True, slots=True)
class TritonRequests:
    """Requests to a server on this machine."""

    client: InferenceServerClient
    painter: Painter

    async def paint(self, job: Painting) -> Reply:
        """Text to image. Raises `ArmFailed` for anything but an image."""
        defaults = self.painter.defaults
        guidance = defaults.guidance_scale if job.guidance_scale is None else job.guidance_scale
        values: dict[str, list[Any]] = {
            "prompt": [job.prompt.encode()],
            "steps": [job.steps],
            "seed": [job.seed],
            "guidance_scale": [guidance],
            "guidance_interval": list(job.guidance_interval),
            "sampler": [(job.sampler or defaults.sampler).encode()],
        }
        painted = await self._infer(job.id, PAINTER, values)
        return Reply(painted["image"], job.prompt, painted["batch_size"])

    async def paint_photo(self, photo: Photo, steps: int) -> Reply:
        """Photograph to image. Raises `ArmFailed` for anything but an image."""
        values = {"photo": [photo.data], "class_name": [photo.class_name.encode()]}
        prompt = (await self._infer(photo.id, CAPTIONER, values))["prompt"].decode()
        return await self.paint(Painting(photo.id, prompt, steps, photo.seed))

    async def _infer(self, key: str, model: str, values: dict[str, list[Any]]) -> dict[str, Any]:
        """The outputs of one row, each one value."""
        inputs = [_tensor(port.name, port.data_type, values[port.name]) for port in MODELS[model].inputs]
        try:
            result: Any = await self.client.infer(model, inputs)
        except InferenceServerException as error:
            raise ArmFailed(f"{key}: {error}") from error
        return {port.name: result.as_numpy(port.name).item() for port in MODELS[model].outputs}


@asynccontextmanager
async def open_triton(conditions: Conditions) -> AsyncIterator[PerRequest]:
    """Triton with the best of a few settings. Raises `PeerUnavailable`."""
    try:
        installation = find_triton()
    except Unavailable as error:
        raise PeerUnavailable(error.message) from None
    start = partial(start_triton, conditions, installation)
    async with best_of(candidates(conditions.num_threads), start, conditions.steps) as contender:
        yield replace(contender, settings=f"{HOW}; {contender.settings}")


@asynccontextmanager
async def start_triton(
    conditions: Conditions, installation: Installation, setting: Setting
) -> AsyncIterator[PerRequest]:
    """Triton with this setting. It blocks the loop while it starts: nothing else is running then."""
    painter = find_family(conditions.repository, conditions.family).family.painter
    with tempfile.TemporaryDirectory(prefix="captory-bench-") as folder:
        write_repository(Path(folder), conditions, setting)
        try:
            with triton_server([Path(folder)], installation=installation) as server:
                async with InferenceServerClient(server.address) as client:
                    cpu_s = Child(server.pid).cpu_s
                    yield PerRequest("triton", str(setting), TritonRequests(client, painter), cpu_s)
        except Unavailable as error:
            raise PeerUnavailable(error.message) from None


def _tensor(name: str, data_type: str, values: list[Any]) -> InferInput:
    """One row, [1, dims]."""
    wire, kind = _TYPES[data_type]
    tensor = InferInput(name, [1, len(values)], wire)
    tensor.set_data_from_numpy(np.array([values], kind))
    return tensor
