"""A peer's server as a child process: started, waited for, its CPU time read, and gone with all that it started.

Beside it, in its process group, waits a watcher that ends the group when the benchmark is gone however it went: it is
nobody's child, so it keeps awake while the others stand still.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import psutil

from captory_bench.measuring.served import ArmFailed
from captory_bench.peers.contenders import PeerUnavailable

_WATCHED = 'exec 3<&0; ( (read _ <&3; kill -9 0) & ); exec "$@" 3<&- </dev/null'
LOG_TAIL_BYTES = 1500
STOP_TIMEOUT_S = 10.0
POLL_S = 0.2


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Child:
    """A running child with all that it has started."""

    pid: int

    def cpu_s(self) -> float:
        """CPU time that the living of them have used."""
        return family_cpu_s(self.pid)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let them run in the block and stand still after it: some peers poll, which would slow down the others."""
        self._tell(signal.SIGCONT)
        try:
            yield
        finally:
            self._tell(signal.SIGSTOP)

    def _tell(self, number: signal.Signals) -> None:
        for one in _family(self.pid):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def family_cpu_s(pid: int) -> float:
    """CPU time that a process and its living descendants have used."""
    return sum(map(_cpu_s, _family(pid)))


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; nobody when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@asynccontextmanager
async def child(
    command: Sequence[str],
    greet: Callable[[], Awaitable[object]],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> AsyncIterator[Child]:
    """Run `command` until the end of the block; gives it once `greet` raises no `ArmFailed` any more.

    Raises `PeerUnavailable`, with the child's last words, when it ends before that or takes longer than `timeout_s`.
    """
    with tempfile.TemporaryFile("a+b") as log:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; the command is ours
            ["/bin/sh", "-c", _WATCHED, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            await _wait(process, greet, timeout_s, log)
            yield Child(process.pid)
        finally:
            await asyncio.to_thread(_stop, process)


async def _wait(
    process: subprocess.Popen[bytes], greet: Callable[[], Awaitable[object]], timeout_s: float, log: IO[bytes]
) -> None:
    answer = "no answer"
    try:
        async with asyncio.timeout(timeout_s):
            while process.poll() is None:
                try:
                    await greet()
                    return
                except ArmFailed as error:
                    answer = str(error)
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise PeerUnavailable(f"did not start within {timeout_s:g} s: {answer}; {_last_words(log)}") from None
    raise PeerUnavailable(f"ended at its start with {process.returncode}: {_last_words(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the child to end; then end it and whatever it has started, in its group or not."""
    family = _family(process.pid)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.resume()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()


def _last_words(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip() or "(it said nothing)"
