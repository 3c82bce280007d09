"""A real `tritonserver` as a child process, on the CPU, out of the Python environment that holds `nvidia-pytriton`.

That wheel brings the server and its Python backend alone; the backend that serves `backend: "onnxruntime"` is ours, in
`backends/`. Both are laid together in a private folder. The server listens on loopback, and ends with its parent.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import grpc

from captory_engine.errors import Unavailable

PYTHON_VARIABLE = "CAPTORY_TRITON_PYTHON"
DEFAULT_PYTHON = ".venv-triton/bin/python"
OUR_BACKENDS = Path(__file__).parent / "backends"
PYTHON_BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend keeps its regions
STOP_TIMEOUT_S = 15.0
PORT_ATTEMPTS = 3
PORT_TAKEN = "already in use"
ON_DEMAND = ["--model-control-mode=explicit", "--load-model=*"]
LOG_TAIL_BYTES = 4000
# A server that is killed takes its children along, but not the other way round: the kernel tells it of our end.
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"  # PR_SET_PDEATHSIG
)
_PROBE = (
    "import importlib.util, json, sys, sysconfig; spec = importlib.util.find_spec('pytriton');"
    "print(json.dumps([spec and spec.submodule_search_locations[0], '%d.%d' % sys.version_info[:2],"
    " sysconfig.get_config_var('LIBDIR')]))"
)
_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@dataclass(frozen=True, slots=True)
class Installation:
    """Where a Python environment keeps its Triton. `libraries` is what the loader must be told."""

    python: Path
    server: Path
    python_backend: Path
    stub: Path
    libraries: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A running server; `address` is that of its gRPC port."""

    address: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def find_triton(python: Path | None = None) -> Installation:
    """Find the Triton of a Python environment: `python`, else CAPTORY_TRITON_PYTHON, else `.venv-triton` here.

    Raises `Unavailable` with what is missing.
    """
    program = (python or Path(os.environ.get(PYTHON_VARIABLE) or DEFAULT_PYTHON)).absolute()
    if not os.access(program, os.X_OK):
        raise _missing(f"there is no Python at {program}; `make triton-env` makes one, or set {PYTHON_VARIABLE}")
    probe = subprocess.run([program, "-c", _PROBE], capture_output=True, text=True, check=False)  # noqa: S603
    if probe.returncode:
        raise _missing(f"{program} does not run: {probe.stderr.strip()}")
    package, version, libraries = json.loads(probe.stdout)
    if package is None:
        raise _missing(f"{program} has no nvidia-pytriton")
    root = Path(package) / "tritonserver"
    found = Installation(
        python=program,
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=(Path(package).parent / "nvidia_pytriton.libs", Path(libraries)),
    )
    absent = [path for path in (found.server, found.python_backend, found.stub) if not path.exists()]
    if absent:
        raise _missing(f"{absent[0]} is not there: another version of nvidia-pytriton, or of Python")
    return found


@contextmanager
def triton_server(
    repositories: Sequence[Path],
    *,
    installation: Installation | None = None,
    num_threads: int = 0,
    port: int = 0,
    loads_on_demand: bool = False,
    start_timeout_s: float = 120.0,
) -> Iterator[TritonServer]:
    """Serve all models of the repositories until the block is left, on `port` or, for 0, on a free one.

    `num_threads` is for each instance of a model on ONNX Runtime, 0: all cores. With `loads_on_demand` a client may
    unload models and load them again. The server also ends with the thread that entered the block. Raises `Unavailable`
    with the end of the log when the server does not start, or not in time.
    """
    triton = installation or find_triton()
    with tempfile.TemporaryDirectory(prefix="captory-triton-") as folder, tempfile.TemporaryFile("a+b") as log:
        lay_backends(triton, Path(folder))
        child = _Child(
            program=[str(triton.python), "-c", _END_WITH_PARENT, str(triton.server), *_arguments(repositories, folder)]
            + (ON_DEMAND if loads_on_demand else []),
            environment=_environment(triton, num_threads),
            folder=folder,
            log=log,
        )
        with ExitStack() as stack:
            stack.callback(_sweep_shared_memory, Path(folder).name)
            process, address = _start(child, port, time.monotonic() + start_timeout_s)
            stack.callback(_stop, process)
            yield TritonServer(address, process)


def lay_backends(triton: Installation, folder: Path) -> None:
    """Lay Triton's Python backend and ours into `folder`, as a directory of backends. Triton refuses links there."""
    python_backend = folder / "python"
    python_backend.mkdir()
    for name in PYTHON_BACKEND_FILES:
        shutil.copyfile(triton.python_backend / name, python_backend / name)
    shutil.copyfile(triton.stub, python_backend / triton.stub.name)
    (python_backend / triton.stub.name).chmod(0o755)
    for model in OUR_BACKENDS.glob("*/model.py"):
        (folder / model.parent.name).mkdir()
        shutil.copyfile(model, folder / model.parent.name / model.name)


class _Child(NamedTuple):
    """What is started: a command without its port, and where."""

    program: list[str]
    environment: dict[str, str]
    folder: str
    log: IO[bytes]


def _arguments(repositories: Sequence[Path], folder: str) -> list[str]:
    """All but the port. Shared memory goes by a name of our own, so that nothing of it outlives a killed server."""
    backends = ["python", *(model.parent.name for model in OUR_BACKENDS.glob("*/model.py"))]
    regions = [f"--backend-config={name},shm-region-prefix-name={Path(folder).name}" for name in backends]
    return [
        *(f"--model-repository={path.absolute()}" for path in repositories),
        f"--backend-directory={folder}",
        *regions,
        "--disable-auto-complete-config",
        "--log-info=false",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        "--pinned-memory-pool-byte-size=0",
        "--exit-timeout-secs=5",
    ]


def _environment(triton: Installation, num_threads: int) -> dict[str, str]:
    """The server's environment. Its Pythons find their packages by PATH; they run isolated and read no PYTHONPATH."""
    libraries = [*map(str, triton.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {
        "PATH": f"{triton.python.parent}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "CAPTORY_TRITON_THREADS": str(num_threads),
    }


def _start(child: _Child, port: int, deadline_s: float) -> tuple[subprocess.Popen[bytes], str]:
    """Start and give process and address; another program may take a free port first, so that is tried a few times."""
    ended: int | None = None
    for _ in range(1 if port else PORT_ATTEMPTS):
        address = f"127.0.0.1:{port or _free_port()}"
        process = subprocess.Popen(  # noqa: S603 - the command is ours
            [*child.program, f"--grpc-port={address.rpartition(':')[2]}"],
            stdin=subprocess.DEVNULL,
            stdout=child.log,
            stderr=child.log,
            env=child.environment,
            cwd=child.folder,
            start_new_session=True,
        )
        with ExitStack() as unless_ready:
            unless_ready.callback(_stop, process)
            if _is_ready(process, address, deadline_s):
                unless_ready.pop_all()
                return process, address
            ended = process.poll()
        if PORT_TAKEN not in _last_words(child.log):
            break
    how = "did not start in time" if ended is None else f"ended with exit code {ended}"
    raise Unavailable("TRITON_DOWN", f"tritonserver {how}; its log ends with:\n{_last_words(child.log)}")


def _is_ready(process: subprocess.Popen[bytes], address: str, deadline_s: float) -> bool:
    """Wait until the server serves. Its port opens when all models are loaded; it ends if one cannot be."""
    with grpc.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        ready = grpc.channel_ready_future(channel)
        while process.poll() is None and time.monotonic() < deadline_s:
            with suppress(grpc.FutureTimeoutError):
                ready.result(timeout=0.2)
                return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end what is left of its group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _sweep_shared_memory(name: str) -> None:
    """Remove the regions that a killed server has left."""
    for region in SHARED_MEMORY.glob(f"{name}*"):
        region.unlink(missing_ok=True)


def _last_words(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()


def _missing(words: str) -> Unavailable:
    return Unavailable("TRITON_MISSING", f"No Triton: {words}.")
