"""The session of a remote Triton against a small server that speaks its protocol, and does as it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from triton_peer import Peer, peer_of_the_unet, regions, served
from tritonclient.grpc import model_config_pb2
from tritonclient.utils.shared_memory import SharedMemoryException

from captory_engine.errors import BadModel, BadOutput, OutOfMemory, Unavailable, Unreachable
from captory_engine.sessions.options import SessionOptions, TritonOptions
from captory_engine.sessions.registry import open_session
from captory_engine.sessions.triton_memory import MOUNT, PREFIX, Region, offsets


@pytest.fixture
def peer() -> Peer:
    return peer_of_the_unet()


@pytest.fixture
def address(peer: Peer) -> Iterator[str]:
    with served(peer) as bound:
        yield bound


def opened(peer: Peer, address: str, **more: Any) -> Any:
    return open_session("triton", peer.model, SessionOptions(triton=TritonOptions(address, **more)))


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


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unreachable),
        (grpc.StatusCode.NOT_FOUND, Unreachable),
        (grpc.StatusCode.INVALID_ARGUMENT, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Unreachable),
        ("CUDA out of memory", OutOfMemory),
        ("short", BadOutput),
    ],
)
def test_what_fails_is_said_and_not_asked_again(
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
        opened(peer, "127.0.0.1:1")


def test_shared_memory_is_tried_and_may_be_demanded(peer: Peer, address: str) -> None:
    with pytest.raises(BadModel, match="share no memory"):
        opened(peer, address, shared_memory=True)
    session = opened(peer, address)
    session.run(inputs())
    assert len(peer.requests[0].raw_input_contents) == 3  # sent
    session.close()


def test_what_lies_in_shared_memory_is_not_sent_in_any_step(peer: Peer, address: str) -> None:
    peer.shares_memory = True
    session = opened(peer, address, shared_memory=True)
    given = inputs()
    for _ in range(3):
        given["sample"] = session.run(given)["out_sample"]
    np.testing.assert_array_equal(given["sample"], 8 * inputs()["sample"])
    assert not any(request.raw_input_contents for request in peer.requests)
    assert max(request.ByteSize() for request in peer.requests) < 1000
    assert len({name for request in peer.requests for name in regions(request)}) == 1
    session.close()
    assert not left_of(peer)


def left_of(peer: Peer) -> list[str]:
    """Regions that Triton still maps, or that still lie there."""
    used = {name for request in peer.requests for name in regions(request)}
    return [*peer.registered, *(name for name in used if (MOUNT / name).exists())]


def test_a_triton_that_was_restarted_gets_new_regions(peer: Peer, address: str) -> None:
    peer.shares_memory = True
    session = opened(peer, address, shared_memory=True)
    session.run(inputs())
    peer.registered.clear()
    with pytest.raises(Unreachable):  # it knows the region no more
        session.run(inputs())
    np.testing.assert_array_equal(session.run(inputs())["out_sample"], 2 * inputs()["sample"])
    assert regions(peer.requests[-1]) != regions(peer.requests[0])
    session.close()
    assert not left_of(peer)


def test_memory_of_a_killed_process_is_taken_away(peer: Peer, address: str) -> None:
    peer.shares_memory = True
    living, killed, mapped = Region(1 << 12), MOUNT / f"{PREFIX}killed", f"{PREFIX}mapped"
    killed.write_bytes(b"")  # its maker's lock ended with it
    peer.registered += [living.name, mapped, "someone-elses"]
    session = opened(peer, address, shared_memory=True)
    assert not killed.exists()
    assert mapped not in peer.registered
    assert {living.name, "someone-elses"} <= set(peer.registered)
    assert (MOUNT / living.name).exists()
    living.destroy()
    session.close()


def test_a_region_that_triton_cannot_map_is_done_without(peer: Peer, address: str) -> None:
    peer.shares_memory = True
    session = opened(peer, address, shared_memory=True)
    peer.shares_memory = False
    np.testing.assert_array_equal(session.run(inputs())["out_sample"], 2 * inputs()["sample"])
    assert len(peer.requests[0].raw_input_contents) == 3
    session.close()
    assert not left_of(peer)


def test_no_room_for_a_region_is_said_before_anything_is_written_there() -> None:
    own = f"{PREFIX}{os.getpid()}-*"
    before = set(MOUNT.glob(own))
    with pytest.raises(SharedMemoryException, match="no room"):
        Region(1 << 44)
    assert set(MOUNT.glob(own)) == before


def test_regions_whose_files_others_took_away_are_closed_all_the_same(peer: Peer, address: str) -> None:
    peer.shares_memory = True
    session = opened(peer, address, shared_memory=True)
    session.run(inputs())
    for path in MOUNT.glob(f"{PREFIX}{os.getpid()}-*"):
        path.unlink()
    session.close()
    assert not left_of(peer)


def test_only_what_can_be_a_region_s_name_is_taken_away(peer: Peer, address: str, tmp_path: Path) -> None:
    """Any client of a Triton may register a name there."""
    peer.shares_memory = True
    others, folder = tmp_path / "theirs", MOUNT / f"{PREFIX}{os.getpid()}-folder"
    others.touch()
    folder.mkdir()
    peer.registered.append(f"{folder.name}/../../..{others}")
    try:
        opened(peer, address, shared_memory=True).close()
    finally:
        folder.rmdir()
    assert others.exists()


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
    used = [regions(request)[0] for request in peer.requests]
    assert len(set(used)) == len(used) == 3
    session.close()
    assert not left_of(peer)


def test_who_waits_when_the_session_is_closed_is_told(peer: Peer, address: str) -> None:
    session = opened(peer, address)
    peer.faults = ["hang"]
    with ThreadPoolExecutor(1) as lane:
        waiting = lane.submit(session.run, inputs())
        peer.asked.wait(10)
        session.close()
        with pytest.raises(Unavailable, match="closed"):
            waiting.result(10)


def test_tensors_lie_apart_and_aligned() -> None:
    assert offsets({"a": 1, "b": 64, "c": 65}) == ({"a": 0, "b": 64, "c": 128}, 256)
