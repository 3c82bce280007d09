"""A vLLM of our own, with a script in its place: started, started again, ended, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from captory_engine.errors import BadModel, Unavailable
from captory_engine.manifest import MANIFEST, write_manifest
from captory_engine.vllm.answers import read_models
from captory_engine.vllm.endpoint import KEY_VARIABLE, Endpoint
from captory_engine.vllm.options import VllmOptions
from captory_engine.vllm.process import PYTHON_VARIABLE, Clock, LocalVllm, find_python
from captory_engine.vllm.server import open_server

SERVES = """
import http.server, json, os, subprocess, sys
engine = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([sys.argv[1:], dict(os.environ), os.getpid(), engine.pid]) + "\\n")
print("the model is loaded", flush=True)
options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
answers = {
    "/health": "",
    "/version": json.dumps({"version": "0.32.0"}),
    "/v1/models": json.dumps({"data": [{"id": options["--served-model-name"], "root": "/somewhere"}]}),
}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if known or not self.path.startswith("/v1") else 401)
        self.end_headers()
        self.wfile.write(answers[self.path].encode())
        if self.path == "/health" and "DIES" in globals():
            os._exit(5)
http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""
SAYS_AND_ENDS = 'import sys; print("\\x1b[31mValueError: no such model", file=sys.stderr, end=""); sys.exit(7)'
NEVER_READY = """
import json, os, sys, threading
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([sys.argv[1:], {}, os.getpid(), 0]) + "\\n")
threading.Event().wait()
"""
COUNTS = """
import os, sys
with open(os.environ["SEEN"] + ".tries", "a+") as tries:
    tries.write("x")
    tries.seek(0)
    number = len(tries.read())
"""
FAILS_EIGHT_TIMES = f"{COUNTS}\nif 2 <= number <= 9: sys.exit(3)\n{SERVES}"
LOADS_FOR_EVER_WHEN_TOLD = f"""
import os, threading
if os.path.exists(os.environ["SEEN"] + ".loads"): threading.Event().wait()
{SERVES}
"""
# The first and the fourth die when they are first asked whether they are well; those between them do not start.
DIES_WHEN_READY = f"{COUNTS}\nif number in (2, 3): sys.exit(3)\nif number in (1, 4): DIES = True\n{SERVES}"
DOES_NOT_END = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SERVES}"


class Start(NamedTuple):
    """What one start of the script saw."""

    arguments: list[str]
    environment: dict[str, str]
    pid: int
    engine_pid: int


class Installed(NamedTuple):
    """An environment whose vLLM is a script."""

    python: Path
    module: Path
    seen: Path

    def starts(self) -> list[Start]:
        return [Start(*json.loads(line)) for line in self.seen.read_text().splitlines()]

    def num_tries(self) -> int:
        return len(Path(f"{self.seen}.tries").read_text())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "vllm").touch(0o755)
    module = tmp_path / "lib" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    return with_script(Installed(tmp_path / "bin" / "python", module, tmp_path / "seen"), SERVES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "writer"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return model


def with_script(installed: Installed, script: str) -> Installed:
    installed.module.write_text(script)
    return installed


class Pauses:
    """Stands for the pause before a start: keeps its length, and lasts until what a test does in it is done."""

    def __init__(self, meanwhile: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.taken_s: list[float] = []
        self._meanwhile = meanwhile

    async def __call__(self, pause_s: float) -> None:
        self.taken_s.append(pause_s)
        if self._meanwhile is not None:
            await self._meanwhile(len(self.taken_s))


NO_PAUSES = Clock(sleep=Pauses())


@asynccontextmanager
async def running(
    installed: Installed, ref: Path | str, *, clock: Clock = NO_PAUSES, **options: Any
) -> AsyncIterator[LocalVllm]:
    settings = VllmOptions(python=installed.python, **({"start_timeout_s": 30.0} | options))
    own = await LocalVllm.start(str(ref), settings, "the-key", clock)
    try:
        yield own
    finally:
        await own.close()


async def names(own: LocalVllm) -> list[str]:
    """What it serves, once it does."""
    endpoint = Endpoint(own.address, VllmOptions(patience_s=30.0), "the-key")
    try:
        return [model.id for model in read_models(await endpoint.get("/v1/models"))]
    finally:
        await endpoint.close()


@contextmanager
def loading_for_ever(installed: Installed) -> Iterator[None]:
    """While this lasts, a start of the script does nothing."""
    told = Path(f"{installed.seen}.loads")
    told.touch()
    try:
        yield
    finally:
        told.unlink()


@contextmanager
def foreign(address: str, status: int, body: bytes) -> Iterator[None]:
    """Another's server at this address, which answers everything in one way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    host, _, port = address.rpartition(":")
    with HTTPServer((host, int(port)), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def gone(pid: int) -> bool:
    """Whether a process, not our own child, has ended or does so soon."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    readable, _, _ = select.select([handle], [], [], 20)
    os.close(handle)
    return bool(readable)


async def test_it_is_told_what_it_needs_and_ended(installed: Installed, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    options: dict[str, Any] = {"gpu_memory": 0.3, "arguments": ("--enforce-eager",), "log_file": log}
    async with running(installed, folder, **options) as own:
        assert await names(own) == ["writer"]
    [start] = installed.starts()
    host, _, port = own.address.rpartition(":")
    assert start.arguments == [
        f"--model={folder}",
        f"--host={host}",
        f"--port={port}",
        "--served-model-name=writer",
        "--load-format=safetensors",
        "--disable-uvicorn-access-log",
        "--gpu-memory-utilization=0.3",
        "--enforce-eager",
    ]
    assert start.environment["VLLM_API_KEY"] == "the-key"
    assert start.environment["PATH"].startswith(str(installed.python.parent))
    assert "the model is loaded" in log.read_text()
    assert gone(start.pid)
    assert gone(start.engine_pid)


async def test_a_hub_s_model_is_pinned(installed: Installed) -> None:
    async with running(installed, "org/name@0abc") as own:
        assert await names(own) == ["org/name@0abc"]
    assert installed.starts()[0].arguments[:3] == ["--model=org/name", "--revision=0abc", "--tokenizer-revision=0abc"]


@pytest.mark.parametrize("ref", ["org/name", "org/name@", "@0abc", "--trust-remote-code@x", "no/such/folder"])
async def test_what_is_not_pinned_is_refused(installed: Installed, ref: str) -> None:
    with pytest.raises(BadModel, match="neither a folder nor"):
        async with running(installed, ref):
            pass
    assert not installed.seen.exists()


async def test_killed_it_comes_back_at_the_same_address(installed: Installed, folder: Path) -> None:
    async with running(installed, folder) as own:
        first = own.pid
        os.kill(first, signal.SIGKILL)
        assert await names(own) == ["writer"]
        assert own.pid != first
    before, after = installed.starts()
    assert (before.pid, after.pid) == (first, own.pid)
    assert all(gone(pid) for start in (before, after) for pid in (start.pid, start.engine_pid))


async def test_pauses_grow_until_it_serves(installed: Installed, folder: Path) -> None:
    pauses = Pauses()
    clock = Clock(sleep=pauses)
    async with running(with_script(installed, FAILS_EIGHT_TIMES), folder, clock=clock) as own:
        os.kill(own.pid, signal.SIGKILL)
        assert await names(own) == ["writer"]
    assert installed.num_tries() == 10
    assert pauses.taken_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_one_that_dies_when_it_is_ready_is_started_again_soon(installed: Installed, folder: Path) -> None:
    died_again = asyncio.Event()

    async def note(number: int) -> None:
        if number == 4:
            died_again.set()

    pauses = Pauses(note)
    clock = Clock(health_s=0.05, sleep=pauses)
    async with running(with_script(installed, DIES_WHEN_READY), folder, clock=clock) as own:
        await died_again.wait()
        assert await names(own) == ["writer"]
    assert pauses.taken_s[:4] == [1, 2, 4, 1]


async def test_one_that_hangs_is_started_again(installed: Installed, folder: Path) -> None:
    again = asyncio.Event()

    async def note(_: int) -> None:
        again.set()

    clock = Clock(stop_s=0.1, health_s=0.1, sleep=Pauses(note))
    async with running(installed, folder, clock=clock) as own:
        os.kill(own.pid, signal.SIGSTOP)
        await again.wait()
        assert await names(own) == ["writer"]
    before = installed.starts()[0]
    assert gone(before.pid)
    assert gone(before.engine_pid)


async def test_one_that_does_not_end_is_killed(installed: Installed, folder: Path) -> None:
    async with running(with_script(installed, DOES_NOT_END), folder, clock=Clock(stop_s=0.1)) as own:
        assert await names(own) == ["writer"]
    [start] = installed.starts()
    assert gone(start.pid)
    assert gone(start.engine_pid)


async def test_in_a_pause_its_port_is_kept_and_closed_its_group_is_ended_once(
    installed: Installed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    end, pausing = os.killpg, asyncio.Event()

    def end_and_note(group: int, number: int) -> None:
        ended.append(group)
        end(group, number)

    async def for_ever(_: int) -> None:
        pausing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(os, "killpg", end_and_note)
    async with running(installed, folder, clock=Clock(sleep=Pauses(for_ever))) as own:
        os.kill(own.pid, signal.SIGKILL)
        await pausing.wait()
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind(("127.0.0.1", int(own.address.rpartition(":")[2])))
        await own.close()
    [start] = installed.starts()
    assert ended == [start.pid]
    assert gone(start.engine_pid)


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, b""), (404, b"no such page"), (200, b"hello"), (200, b'{"data": [{"id": "another-s"}]}')],
)
async def test_another_s_server_at_its_address_is_not_taken_for_it(
    installed: Installed, folder: Path, caplog: pytest.LogCaptureFixture, status: int, body: bytes
) -> None:
    gone_again = asyncio.Event()
    with ExitStack() as there:

        async def comes_and_goes(number: int) -> None:
            there.close()
            if number == 1:
                there.enter_context(loading_for_ever(installed))
                there.enter_context(foreign(own.address, status, body))
            else:
                gone_again.set()

        pauses = Pauses(comes_and_goes)
        async with running(with_script(installed, LOADS_FOR_EVER_WHEN_TOLD), folder, clock=Clock(sleep=pauses)) as own:
            os.kill(own.pid, signal.SIGKILL)
            await gone_again.wait()
            assert await names(own) == ["writer"]
    assert pauses.taken_s == [1, 2]
    assert f"cannot serve at {own.address}, where another server answers" in caplog.text


async def test_one_that_ends_says_why(installed: Installed, folder: Path) -> None:
    with pytest.raises(Unavailable, match=r"(?s)exit code 7.*\\x1b\[31mValueError: no such model$"):
        async with running(with_script(installed, SAYS_AND_ENDS), folder):
            pass


async def test_one_that_is_never_ready_is_ended(installed: Installed, folder: Path) -> None:
    with pytest.raises(Unavailable, match="did not start in time"):
        async with running(with_script(installed, NEVER_READY), folder, start_timeout_s=3.0):
            pass
    assert gone(installed.starts()[0].pid)


async def test_a_start_that_is_given_up_leaves_nothing(installed: Installed, folder: Path) -> None:
    os.mkfifo(installed.seen)
    starting = asyncio.create_task(running(with_script(installed, NEVER_READY), folder).__aenter__())
    start = Start(*json.loads(await asyncio.to_thread(installed.seen.read_text)))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert gone(start.pid)


def test_an_environment_without_vllm(tmp_path: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_python(installed.python) == installed.python
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(Unavailable, match=r"elsewhere.*make vllm-env"):
        find_python()
    installed.python.with_name("vllm").unlink()
    with pytest.raises(Unavailable, match="pip install vllm"):
        find_python(installed.python)


async def test_a_sealed_folder_is_checked_and_known_by_its_files(installed: Installed, folder: Path) -> None:
    digest = write_manifest(folder)
    options = VllmOptions(python=installed.python, start_timeout_s=30.0)
    server = await open_server(f"vllm:{folder}", options)
    await server.close()
    assert (server.model, server.info.sha256, server.info.backend) == ("writer", digest, "vllm 0.32.0")
    assert len(installed.starts()[0].environment["VLLM_API_KEY"]) > 30  # nobody gave one
    (folder / "config.json").write_text("{ }")
    with pytest.raises(BadModel, match=r"changed config\.json"):
        await open_server(f"vllm:{folder}", options)
    assert len(installed.starts()) == 1


async def test_an_unsealed_folder_is_known_by_its_files_too(installed: Installed, folder: Path) -> None:
    async def digest() -> str:
        server = await open_server(f"vllm:{folder}", VllmOptions(python=installed.python, start_timeout_s=30.0))
        await server.close()
        return server.info.sha256

    before = await digest()
    assert not (folder / MANIFEST).exists()
    (folder / "config.json").write_text("{ }")
    after = await digest()
    assert before != after == write_manifest(folder)


@pytest.mark.parametrize("name", ["modeling.py", "model.pt"])
async def test_a_folder_that_can_carry_code_is_refused(installed: Installed, folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(BadModel, match="can carry code"):
        await open_server(f"vllm:{folder}", VllmOptions(python=installed.python))
    assert not installed.seen.exists()


def test_it_ends_with_its_parent(installed: Installed, folder: Path) -> None:
    parent = (
        "import asyncio, os, sys; from pathlib import Path\n"
        "from captory_engine.vllm.options import VllmOptions; from captory_engine.vllm.process import LocalVllm\n"
        "async def main():\n"
        "    own = await LocalVllm.start(sys.argv[2], VllmOptions(python=Path(sys.argv[1])), 'key')\n"
        "    print(own.pid, flush=True); sys.stdin.read(); os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", parent, str(installed.python), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.communicate("")
    assert process.returncode == 9
    assert gone(child)
    os.kill(installed.starts()[0].engine_pid, signal.SIGKILL)  # vLLM ends its own; the script has not learnt to
