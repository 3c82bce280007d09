"""A small server that speaks Triton's protocol and does as it is told, for tests without a real one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from captory_engine.repository import ModelFolder, default_repository, open_model

UNET = "picto_painter_unet"
SHARED = Path("/dev/shm")


@dataclass
class Peer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves one model, whose output is its first input doubled. `faults` are used up, one a call of the model.

    A fault is a status, the words of an INTERNAL one, "short" (a row is missing) or "hang" (until `released`).
    """

    model: ModelFolder
    config: Any
    ready: bool = True
    shares_memory: bool = False
    faults: list[grpc.StatusCode | str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    registered: list[str] = field(default_factory=list)
    asked: Event = field(default_factory=Event)
    released: Event = field(default_factory=Event)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="9.9")

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        described = service_pb2.ModelMetadataResponse(name=request.name)
        for tensors, declared in ((described.inputs, self.config.input), (described.outputs, self.config.output)):
            for one in declared:
                kind = model_config_pb2.DataType.Name(one.data_type).removeprefix("TYPE_")
                tensors.add(name=one.name, datatype=kind, shape=[-1, *one.dims])
        return described

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ModelConfigResponse(config=self.config)

    def SystemSharedMemoryStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        status = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.registered:
            status.regions[name].name = name
        return status

    def SystemSharedMemoryRegister(self, request: Any, context: grpc.ServicerContext) -> Any:
        if not self.shares_memory:
            context.abort(grpc.StatusCode.INTERNAL, "Unable to open shared memory region")
        self.registered.append(request.name)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name in self.registered:
            self.registered.remove(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        self.asked.set()
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, grpc.StatusCode):
            context.abort(fault, "as told")
        if fault == "hang":
            self.released.wait()
        elif fault not in (None, "short"):
            context.abort(grpc.StatusCode.INTERNAL, fault)
        if not set(regions(request)) <= set(self.registered):
            context.abort(grpc.StatusCode.NOT_FOUND, "Unable to find shared memory region")
        return _doubled(request, rows=-1 if fault == "short" else None)


def regions(request: Any) -> list[str]:
    """The regions that a request's inputs lie in."""
    laid = (one.parameters for one in request.inputs if "shared_memory_region" in one.parameters)
    return [parameters["shared_memory_region"].string_param for parameters in laid]


def peer_of_the_unet() -> Peer:
    """Serves the painter's denoiser as its folder says."""
    model = open_model(default_repository(), UNET)
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(model.config)
    return Peer(model, config)


@contextmanager
def served(peer: Peer, port: int = 0) -> Iterator[str]:
    """Serve on a port, 0: any; the address."""
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(peer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        peer.released.set()
        server.stop(None).wait()


def _doubled(request: Any, rows: int | None) -> Any:
    first, [wanted] = request.inputs[0], request.outputs
    data = request.raw_input_contents[0] if request.raw_input_contents else _piece(first.parameters)
    array = 2 * np.frombuffer(data, np.float32).reshape(first.shape)[:rows]
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    response.outputs.add(name="out_sample", datatype="FP32", shape=array.shape)
    if "shared_memory_region" in wanted.parameters:
        _lay(wanted.parameters, array.tobytes())
        response.raw_output_contents.append(b"")
    else:
        response.raw_output_contents.append(array.tobytes())
    return response


def _piece(parameters: Any) -> bytes:
    start = parameters["shared_memory_offset"].int64_param if "shared_memory_offset" in parameters else 0
    size = parameters["shared_memory_byte_size"].int64_param
    return (SHARED / parameters["shared_memory_region"].string_param).read_bytes()[start : start + size]


def _lay(parameters: Any, data: bytes) -> None:
    with (SHARED / parameters["shared_memory_region"].string_param).open("r+b") as region:
        region.seek(parameters["shared_memory_offset"].int64_param if "shared_memory_offset" in parameters else 0)
        region.write(data)
