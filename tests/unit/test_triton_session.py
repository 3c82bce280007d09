"""The session of a remote Triton against a small server that speaks its protocol, and does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from captory_engine.errors import BadModel, BadOutput, OutOfMemory, Unavailable, Unreachable
from captory_engine.repository import ModelFolder, default_repository, open_model
from captory_engine.sessions.options import SessionOptions, TritonOptions
from captory_engine.sessions.registry import open_session
from captory_engine.sessions.triton_memory import offsets

UNET = "picto_painter_unet"
Answer = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class Peer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves one model, whose output is its first input doubled. `faults` are used up, one a call of the model."""

    model: ModelFolder
    config: Any
    ready: bool = True
    shares_memory: bool = False
    faults: list[grpc.StatusCode | str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    registered: list[str] = field(default_factory=list)
    asked: Event = field(default_factory=Event)

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

    def SystemSharedMemoryRegister(self, request: Any, context: grpc.ServicerContext) -> Any:
        if not self.shares_memory:
            context.abort(grpc.StatusCode.INTERNAL, "Unable to open shared memory region")
        self.registered.append(request.name)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        self.asked.set()
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, grpc.StatusCode):
                context.abort(fault, "as told")
            elif fault != "short":
                context.abort(grpc.StatusCode.INTERNAL, fault)
            return self._doubled(request, rows=-1)
        return self._doubled(request, rows=None)

    def _doubled(self, request: Any, rows: int | None) -> Any:
        first = request.inputs[0]
        array = 2 * np.frombuffer(request.raw_input_contents[0], np.float32).reshape(first.shape)[:rows]
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="out_sample", datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
        return response


@pytest.fixture
def peer() -> Peer:
    model = open_model(default_repository(), UNET)
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(model.config)
    return Peer(model, config)


@pytest.fixture
def address(peer: Peer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def opened(peer: Peer, address: str, patience_s: float = 20.0, **more: Any) -> Any:
    options = SessionOptions(triton=TritonOptions(address, patience_s=patience_s, **more))
    return open_session("triton", peer.model, options)


def inputs(rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "sample": rng.normal(size=(rows, 8, 8, 8)).astype(np.float32),
        "timestep": np.arange(rows, dtype=np.float32),
        "encoder_hidden_states": rng.normal(size=(rows, 64, 128)).astype(np.float32),
    }


def test_a_batch_is_one_request_and_scalars_travel_as_triton_knows_them(peer: Peer, address: str) -> None:
    session = opened(peer, address)
    given = inputs()
    np.testing.assert_array_equal(session.run(given)["out_sample"], 2 * given["sample"])
    [request] = peer.requests
    assert {one.name: list(one.shape) for one in request.inputs}["timestep"] == [3, 1]
    assert session.backend == "triton 9.9 onnxruntime"
    assert session.digest == peer.model.digest
    session.close()
    with pytest.raises(Unavailable, match="closed"):
        session.run(given)


def test_what_nobody_answers_is_asked_again(peer: Peer, address: str) -> None:
    session = opened(peer, address)
    peer.faults = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE]
    given = inputs()
    np.testing.assert_array_equal(session.run(given)["out_sample"], 2 * given["sample"])
    assert len(peer.requests) == 4
    session.close()


def test_patience_has_an_end(peer: Peer, address: str) -> None:
    session = opened(peer, address, patience_s=0.2)
    peer.faults = [grpc.StatusCode.UNAVAILABLE] * 1000
    with pytest.raises(Unreachable, match=f"no Triton at {address} answers"):
        session.run(inputs())
    assert 2 <= len(peer.requests) < 1000
    session.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Unreachable),
        ("CUDA out of memory", OutOfMemory),
        ("short", BadOutput),
    ],
)
def test_what_is_refused_is_not_asked_again(
    peer: Peer, address: str, fault: grpc.StatusCode | str, kind: type[Exception]
) -> None:
    session = opened(peer, address)
    peer.faults = [fault]
    with pytest.raises(kind) as refused:
        session.run(inputs())
    assert type(refused.value) is kind
    assert len(peer.requests) == 1
    assert session.run(inputs(2))["out_sample"].shape == (2, 8, 8, 8)
    session.close()


def test_every_difference_is_named(peer: Peer, address: str) -> None:
    peer.config.max_batch_size = 8
    peer.config.input[0].dims[0] = 4
    peer.config.input[1].data_type = model_config_pb2.TYPE_FP16
    peer.config.input.add(name="extra", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    peer.config.output[0].name = "other"
    peer.config.dynamic_batching.max_queue_delay_microseconds = 100
    with pytest.raises(BadModel) as refused:
        opened(peer, address)
    words = str(refused.value)
    assert "input 'sample' is FP32 [-1, 4, 8, 8], in the folder FP32 [-1, 8, 8, 8]" in words
    assert "input 'timestep' is FP16 [-1, 1], in the folder FP32 [-1, 1]" in words
    assert "it wants further inputs: extra" in words
    assert "output 'out_sample' is absent, in the folder FP32 [-1, 8, 8, 8]" in words
    assert "it takes batches of 8, in the folder of 64" in words
    assert "its batcher waits 100 us" in words


def test_a_model_that_is_not_ready_is_refused(peer: Peer, address: str) -> None:
    peer.ready = False
    with pytest.raises(BadModel, match="it is not loaded there, or not ready"):
        opened(peer, address)


def test_nobody_there(peer: Peer) -> None:
    with pytest.raises(Unreachable, match="no Triton at 127"):
        opened(peer, "127.0.0.1:1", patience_s=0.2)


def test_shared_memory_is_tried_and_may_be_demanded(peer: Peer, address: str) -> None:
    with pytest.raises(BadModel, match="share no memory"):
        opened(peer, address, shared_memory=True)
    session = opened(peer, address)
    session.run(inputs())
    assert len(peer.requests[0].raw_input_contents) == 3  # sent
    session.close()


def test_tensors_in_shared_memory_are_not_sent_and_nothing_of_it_stays(peer: Peer, address: str) -> None:
    peer.shares_memory = True
    session = opened(peer, address, shared_memory=True)
    peer.faults = [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(Unavailable):
        session.run(inputs())
    [request] = peer.requests
    assert not request.raw_input_contents
    assert {one.parameters["shared_memory_region"].string_param for one in request.inputs} <= set(peer.registered)
    session.close()
    assert not [name for name in set(peer.registered) if (Path("/dev/shm") / name).exists()]


@pytest.mark.parametrize("fault", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND])
def test_memory_of_a_call_that_failed_is_not_lent_again(peer: Peer, address: str, fault: grpc.StatusCode) -> None:
    """Triton may write to it yet, or have been restarted and know none."""
    peer.shares_memory = True
    session = opened(peer, address, shared_memory=True)
    for faults in ([fault, grpc.StatusCode.INVALID_ARGUMENT], [grpc.StatusCode.INVALID_ARGUMENT]):
        peer.faults = faults
        while peer.faults:
            with pytest.raises(Unavailable):
                session.run(inputs())
    used = [request.inputs[0].parameters["shared_memory_region"].string_param for request in peer.requests]
    assert len(set(used)) == len(used) == 3
    session.close()


def test_who_waits_when_the_session_is_closed_is_told(peer: Peer, address: str) -> None:
    session = opened(peer, address)
    peer.faults = [grpc.StatusCode.UNAVAILABLE] * 10_000
    with ThreadPoolExecutor(1) as lane:
        waiting = lane.submit(session.run, inputs())
        peer.asked.wait(10)
        session.close()
        with pytest.raises(Unavailable, match="closed"):
            waiting.result(10)


def test_tensors_lie_apart_and_aligned() -> None:
    assert offsets({"a": 1, "b": 64, "c": 65}) == ({"a": 0, "b": 64, "c": 128}, 256)
