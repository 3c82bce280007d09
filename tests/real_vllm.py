"""A real vLLM for the tests that need one, on the CPU, out of the environment of `make vllm-env`."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import httpx
import pytest
from ports import free_port

from captory_engine.errors import Unavailable
from captory_engine.vllm.process import find_python

WRITER = Path(__file__).parents[1] / "training" / "checkpoints" / "picto" / "writer"
ARGUMENTS = ("--enforce-eager", "--max-num-seqs=64")
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
START_TIMEOUT_S = 300.0


def installed() -> Path | None:
    """The Python that has vLLM."""
    try:
        return find_python()
    except Unavailable:
        return None


NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),  # it takes about a minute to load, each time
    pytest.mark.skipif(installed() is None, reason="no vLLM: `make vllm-env` sets it up, or CAPTORY_VLLM_PYTHON"),
]


class RealVllm(NamedTuple):
    """A running server."""

    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """As the kernel does when memory runs out: all of it, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def vllm_server(port: int = 0, model: Path = WRITER, arguments: Sequence[str] = ()) -> Iterator[RealVllm]:
    """Serve a folder, picto's writer if no other, until the block is left; on `port` or, for 0, on a free one."""
    python = find_python()
    port = port or free_port()
    module = "vllm.entrypoints.openai.api_server"
    place = (f"--model={model}", "--host=127.0.0.1", f"--port={port}")
    command = [python, "-m", module, *place, *ARGUMENTS, *arguments]
    environment = {**os.environ, **ENVIRONMENT, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryFile("a+b") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
            yield RealVllm(f"127.0.0.1:{port}", process)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def num_running(address: str) -> float:
    """Requests that vLLM says are under way."""
    return _metric(address, "num_requests_running")


def num_answered(address: str) -> float:
    """Requests that vLLM says it has answered; those that were given up are none."""
    return _metric(address, "request_success_total") - _metric(address, "request_success_total", "abort")


def num_steps(address: str) -> float:
    """Batches that vLLM says it has run."""
    return _metric(address, "iteration_tokens_total_count")


def _metric(address: str, name: str, label: str = "") -> float:
    lines = httpx.get(f"http://{address}/metrics", trust_env=False).text.splitlines()
    mine = (line for line in lines if line.startswith(f"vllm:{name}{{") and label in line)
    return sum(float(line.rpartition(" ")[2]) for line in mine)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline_s:
            with suppress(httpx.TransportError):
                if client.get(url).status_code == 200:
                    return
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)  # which is the pause as well
                break
    log.seek(0)
    words = log.read().decode(errors="replace")[-8000:]
    raise AssertionError(f"vLLM does not start; exit code {process.poll()}; its log ends with:\n{words}")
