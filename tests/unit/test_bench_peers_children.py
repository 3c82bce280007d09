"""Peers' servers as child processes: ready or not, standing still, and gone at the end with all they started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from captory_bench.measuring.served import ArmFailed
from captory_bench.peers.children import child, free_port
from captory_bench.peers.contenders import PeerUnavailable

# A parent with a child in a process group of its own, both told in a file; then both wait for ever.
FAMILY = """
import pathlib, subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[1] + ".new").write_text(str(inner.pid))
pathlib.Path(sys.argv[1] + ".new").rename(sys.argv[1])
time.sleep(600)
"""


def greeted_by(path: Path) -> Callable[[], Awaitable[None]]:
    async def greet() -> None:
        if not path.exists():  # noqa: ASYNC240
            raise ArmFailed("there is no file yet")

    return greet


def becomes(condition: Callable[[], bool]) -> bool:
    """Whether it holds before long: a signal takes its time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
    return False


def stopped(*pids: int) -> list[bool]:
    return [psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids]


def gone(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


async def test_a_child_and_what_it_started_are_gone_at_the_end_even_standing_still(tmp_path: Path) -> None:
    told = tmp_path / "told"
    async with child([sys.executable, "-c", FAMILY, str(told)], greeted_by(told)) as running:
        pids = running.pid, int(told.read_text())
        assert not any(map(gone, pids))
        assert running.cpu_s() > 0
        with running.awake():
            pass
        assert becomes(lambda: all(stopped(*pids)))
        with running.awake():
            assert becomes(lambda: not any(stopped(*pids)))
    assert becomes(lambda: all(map(gone, pids)))
    assert running.cpu_s() == 0


async def test_a_child_that_ends_at_its_start_is_told_with_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing here')"]
    with pytest.raises(PeerUnavailable, match="ended at its start with 1: no such thing here"):
        async with child(command, greeted_by(Path("/nowhere"))):
            pass


async def test_a_child_that_never_answers_is_told_with_the_last_answer() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    words = r"did not start within 0\.5 s: there is no file yet; \(it said nothing\)"
    with pytest.raises(PeerUnavailable, match=words):
        async with child(command, greeted_by(Path("/nowhere")), timeout_s=0.5):
            pass


def test_a_killed_benchmark_leaves_no_child_even_standing_still(tmp_path: Path) -> None:
    told = tmp_path / "told"
    benchmark = f"""
import asyncio, pathlib, sys
from captory_bench.peers.children import child
from captory_bench.measuring.served import ArmFailed
path = pathlib.Path({str(told)!r})
async def greet():
    if not path.exists():
        raise ArmFailed("not yet")
async def main():
    command = [sys.executable, "-c", "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"]
    async with child([*command, str(path)], greet) as running:
        with running.awake():
            pass
        print(running.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", benchmark], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        stands_still = becomes(lambda: all(stopped(pid)))
        parent.kill()
    assert stands_still
    assert becomes(lambda: gone(pid))


def test_a_free_port_is_a_port() -> None:
    assert 1024 <= free_port() < 1 << 16
