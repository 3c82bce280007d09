"""A vLLM of our own, with a script in its place: started, started again, ended, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from captory_engine.errors import BadModel, Unavailable
from captory_engine.manifest import write_manifest
from captory_engine.vllm.answers import read_models
from captory_engine.vllm.endpoint import KEY_VARIABLE, Endpoint
from captory_engine.vllm.options import VllmOptions
from captory_engine.vllm.process import PYTHON_VARIABLE, LocalVllm, find_python
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
http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""
SAYS_AND_ENDS = 'import sys; print("ValueError: no such model", file=sys.stderr); sys.exit(7)'
NEVER_READY = """
import json, os, sys, threading
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([sys.argv[1:], {}, os.getpid(), 0]) + "\\n")
threading.Event().wait()
"""
# Serves at its first and at its fourth start.
FAILS_TWICE = f"""
import os, sys
with open(os.environ["SEEN"] + ".tries", "a+") as tries:
    tries.write("x")
    tries.seek(0)
    number = len(tries.read())
if number in (2, 3):
    sys.exit(3)
{SERVES}
"""


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


@asynccontextmanager
async def running(installed: Installed, ref: Path | str, **options: Any) -> AsyncIterator[LocalVllm]:
    settings = VllmOptions(python=installed.python, **({"start_timeout_s": 30.0} | options))
    own = await LocalVllm.start(str(ref), settings, "the-key", first_pause_s=0.01)
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
    options = {"gpu_memory": 0.3, "arguments": ("--enforce-eager",), "log_file": log}
    async with running(installed, folder, **options) as own:
        assert await names(own) == ["writer"]
    [start] = installed.starts()
    host, _, port = own.address.rpartition(":")
    assert start.arguments == [
        f"--model={folder}",
        f"--host={host}",
        f"--port={port}",
        "--served-model-name=writer",
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


async def test_one_that_fails_to_come_back_is_tried_again(installed: Installed, folder: Path) -> None:
    async with running(with_script(installed, FAILS_TWICE), folder) as own:
        os.kill(own.pid, signal.SIGKILL)
        assert await names(own) == ["writer"]
    assert installed.num_tries() == 4


async def test_one_that_ends_says_why(installed: Installed, folder: Path) -> None:
    with pytest.raises(Unavailable, match=r"(?s)exit code 7.*no such model"):
        async with running(with_script(installed, SAYS_AND_ENDS), folder):
            pass


async def test_one_that_is_never_ready_is_ended(installed: Installed, folder: Path) -> None:
    with pytest.raises(Unavailable, match="did not start in time"):
        async with running(with_script(installed, NEVER_READY), folder, start_timeout_s=3.0):
            pass
    assert gone(installed.starts()[0].pid)


async def test_a_start_that_is_given_up_leaves_nothing(installed: Installed, folder: Path) -> None:
    starting = asyncio.create_task(running(with_script(installed, NEVER_READY), folder).__aenter__())
    while not installed.seen.exists() or not installed.seen.read_text().endswith("\n"):
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert gone(installed.starts()[0].pid)


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
