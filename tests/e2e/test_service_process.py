"""The server as a process: its address over a pipe, its end with its parent, its drain on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FAKE_SERVER

from captory_client.client import Client
from captory_client.errors import ClientError, ServerLost
from captory_client.local_server import LocalServer
from captory_proto.v1 import captory_pb2 as pb

PARENT = """
import asyncio, sys
from captory_client.local_server import LocalServer
from fakes import FAKE_SERVER

async def main():
    async with LocalServer(command=FAKE_SERVER) as server:
        print(server.pid, server.address, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_local_server_serves_in_a_private_folder_and_leaves_nothing() -> None:
    async with LocalServer(command=FAKE_SERVER) as server:
        folder = Path(server.address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        async with Client(server.address) as client:
            assert len(await client.generate("a crane", n=2)) == 2
        pid = server.pid
    assert not folder.exists()
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_parent_leaves_no_orphan() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid, address = parent.stdout.readline().split()
    watch = os.pidfd_open(int(pid))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert has_ended(watch), "the server outlived its parent"
    assert not Path(address.removeprefix("unix:")).parent.exists()


def has_ended(watch: int, timeout_s: float = 20) -> bool:
    """Whether the process behind a pidfd ends in time."""
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    ended = bool(poll.poll(timeout_s * 1000))
    os.close(watch)
    return ended


async def test_a_server_ends_on_sigterm_and_another_takes_what_it_did_not_begin() -> None:
    local = LocalServer(command=FAKE_SERVER)
    async with local as server, Client(server.address, max_in_flight=4, on_lost=server.revive) as client:
        items = (pb.Item(id=f"i{k}", prompt="x", parameters=pb.Parameters(n=8)) for k in range(20))
        results = client.synthesize(items)
        responses = [await anext(results)]
        watch = os.pidfd_open(server.pid)
        os.kill(server.pid, signal.SIGTERM)
        responses += [response async for response in results]
        assert await asyncio.to_thread(has_ended, watch)
    assert sum(response.HasField("image") for response in responses) == 160
    assert sum(response.HasField("done") for response in responses) == 20


async def test_a_killed_server_is_started_again_and_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    os.environ["FAKE_CRASH_FILE"] = str(crash)
    try:
        async with LocalServer(command=FAKE_SERVER) as server, Client(server.address, on_lost=server.revive) as client:
            before = server.pid
            items = (pb.Item(id=f"i{k}", prompt="x", parameters=pb.Parameters(n=2, seed=k)) for k in range(200))
            responses = [response async for response in client.synthesize(items)]
            assert server.pid != before
    finally:
        del os.environ["FAKE_CRASH_FILE"]
    images = [response.image.provenance.seed for response in responses if response.HasField("image")]
    assert len(images) == len(set(images)) == 400
    assert sum(response.HasField("done") for response in responses) == 200


async def test_a_server_that_keeps_dying_is_given_up() -> None:
    local = LocalServer(command=FAKE_SERVER, max_restarts=0)
    async with local as server, Client(server.address, on_lost=server.revive) as client:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerLost, match="keeps dying"):
            [response async for response in client.synthesize([pb.Item(id="a", prompt="x")])]


async def test_a_server_that_does_not_start_shows_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no models here')"]
    with pytest.raises(ServerLost, match="no models here"):
        async with LocalServer(command=command):
            pass


async def test_a_server_that_does_not_start_in_time_is_stopped() -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    with pytest.raises(ServerLost, match="did not start within"):
        async with LocalServer(command=command, start_timeout_s=0.5):
            pass


async def test_wrong_settings_are_told_from_a_server_that_is_down() -> None:
    with pytest.raises(ClientError, match="no family") as refused:
        async with LocalServer(["--repository", "/", "--family", "nope"]):
            pass
    assert not isinstance(refused.value, ServerLost)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.com:1"])
def test_an_address_that_others_can_reach_is_refused(address: str) -> None:
    command = [sys.executable, "-m", "captory_server", "--address", address]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "no TLS and no authentication" in ended.stderr
