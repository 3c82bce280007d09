"""A server of one's own: a child process on a Unix socket in a private folder, gone when its parent is gone."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from captory_client.errors import ClientError, ServerLost

SERVER_COMMAND = (sys.executable, "-m", "captory_server")
MAX_SOCKET_PATH_BYTES = 107
SOCKET = "captory.sock"
LOG_TAIL_BYTES = 4000
START_TIMEOUT_S = 120.0
VLLM_START_TIMEOUT_S = 660.0  # a vLLM of the server's own has 600 s to load its model
OWN_VLLM = re.compile(r"(^|=)vllm:(?!//)")
USAGE = 2  # the exit code of a server whose settings are wrong


class LocalServer:
    """Starts a server and stops it afterwards. Use it as an asynchronous context manager; then `address` is set."""

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        command: Sequence[str] | None = None,
        start_timeout_s: float | None = None,
        stop_timeout_s: float = 10.0,
        max_restarts: int = 3,
    ) -> None:
        self._command = [*(command or SERVER_COMMAND), *options]
        self.starts_vllm = _starts_vllm(options)
        self._start_timeout_s = start_timeout_s or (VLLM_START_TIMEOUT_S if self.starts_vllm else START_TIMEOUT_S)
        self._stop_timeout_s = stop_timeout_s
        self._restarts_left = max_restarts

    async def __aenter__(self) -> Self:
        self._folder = _private_folder()
        self.address = f"unix:{self._folder / SOCKET}"
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def revive(self) -> None:
        """Start the server again if it has died. Raises `ServerLost` when it has died too often."""
        if self._process.poll() is None:
            return
        if self._restarts_left == 0:
            raise ServerLost(f"the server keeps dying ({await self._obituary()})")
        self._restarts_left -= 1
        await self._stop()
        await self._start()

    async def _start(self) -> None:
        """Start the child and wait until it serves."""
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - _stop closes it; it has no name to leave
        hears, tells = os.pipe()
        child_end, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; the command is ours
                [*self._command, "--address", self.address, "--address-fd", str(tells), "--parent-fd", str(child_end)],
                pass_fds=(tells, child_end),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={"CAPTORY_LOG_LEVEL": "warning", **os.environ},
                start_new_session=True,  # Ctrl-C is for the parent, which stops the child when it is done
            )
        finally:
            os.close(tells)
            os.close(child_end)
        await self._hear_address(hears)

    async def _hear_address(self, fd: int) -> None:
        """Wait for the line that says that the server serves; the pipe closes without it if the child dies."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb")
        )
        try:
            async with asyncio.timeout(self._start_timeout_s):
                line = await reader.readline()
        except TimeoutError:
            raise ServerLost(
                f"the server did not start within {self._start_timeout_s:g} s{self._last_words()}"
            ) from None
        finally:
            transport.close()
        if not line:
            words = f"the server did not start ({await self._obituary()})"
            refused = self._process.returncode == USAGE
            raise ClientError(words, code="INVALID_ARGUMENT") if refused else ServerLost(words)

    async def _stop(self) -> None:
        """Ask the child to end, and end it if it does not."""
        if not hasattr(self, "_process"):
            return
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        os.close(self._lifeline)
        self._log.close()

    async def _obituary(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, self._stop_timeout_s)
        return f"exit code {self._process.returncode}{self._last_words()}"

    def _last_words(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL_BYTES))
        words = self._log.read().decode(errors="replace").strip()
        return f"; its log ends with:\n{words}" if words else ", it logged nothing"


def _starts_vllm(options: Sequence[str]) -> bool:
    """Whether a server with these options has a vLLM of its own to start."""
    words = [*options, *(os.environ.get(name, "") for name in ("CAPTORY_WRITER", "CAPTORY_CAPTIONER"))]
    return any(map(OWN_VLLM.search, words))


def _private_folder() -> Path:
    """A folder that only this user can enter, with a path short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="captory-"))
    if len(os.fsencode(folder / SOCKET)) <= MAX_SOCKET_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="captory-", dir="/tmp"))
