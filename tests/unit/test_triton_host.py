"""Finding and running a tritonserver, with scripts in its place."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from captory_engine.errors import Unavailable
from captory_export.triton import host
from captory_export.triton.host import (
    PYTHON_BACKEND_FILES,
    PYTHON_VARIABLE,
    Installation,
    find_triton,
    lay_backends,
    triton_server,
)

SERVES = """
import json, os, sys, threading
from concurrent import futures
import grpc
options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
with open(os.path.join(options["--model-repository"], "seen.json"), "w") as seen:
    json.dump([sys.argv[1:], dict(os.environ), os.getcwd(), os.listdir(options["--backend-directory"])], seen)
server = grpc.server(futures.ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:" + options["--grpc-port"])
server.start()
threading.Event().wait()
"""
SAYS_AND_ENDS = 'import sys; print("E: model picto cannot be loaded", file=sys.stderr); sys.exit(7)'
PORT_IS_TAKEN = """
import os, sys
with open(os.environ["TRIES"], "a") as tries:
    tries.write("x")
sys.exit("Unavailable - Socket '127.0.0.1:1' already in use")
"""
NEVER_READY = """
import os, threading
with open(os.environ["TRIES"], "w") as pid:
    pid.write(str(os.getpid()))
threading.Event().wait()
"""


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    root = tmp_path / "installed"
    root.mkdir()
    for name in (*PYTHON_BACKEND_FILES, "triton_python_backend_stub"):
        (root / name).write_text(name)
    python = Path(sys.executable)
    return Installation(python, root / "tritonserver", root, root / "triton_python_backend_stub", (root / "libs",))


def with_server(installation: Installation, script: str) -> Installation:
    installation.server.write_text(f"#!{sys.executable}\n{script}")
    installation.server.chmod(0o755)
    return installation


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="make triton-env"):
        find_triton(tmp_path / "python")


def test_a_python_without_triton() -> None:
    with pytest.raises(Unavailable, match="no nvidia-pytriton"):
        find_triton(Path(sys.executable))


def test_the_environment_names_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(Unavailable, match="elsewhere"):
        find_triton()


def fake_python(folder: Path, answer: object) -> Path:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    python.chmod(0o755)
    return python


def test_what_is_installed_is_found(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "pytriton"
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / "3.12" / "triton_python_backend_stub"
    for path in (root / "bin" / "tritonserver", root / "backends" / "python" / "x", stub):
        path.parent.mkdir(parents=True)
        path.touch()
    found = find_triton(fake_python(tmp_path, [str(package), "3.12", "/lib"]))
    assert found.server == root / "bin" / "tritonserver"
    assert found.stub == stub
    assert found.libraries == (tmp_path / "site-packages" / "nvidia_pytriton.libs", Path("/lib"))
    with pytest.raises(Unavailable, match=r"3\.9.* is not there"):
        find_triton(fake_python(tmp_path, [str(package), "3.9", "/lib"]))


def test_the_backends_lie_together_as_files(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "backends").mkdir()
    lay_backends(installation, tmp_path / "backends")
    laid = [path for path in (tmp_path / "backends").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "backends")) for path in laid} == {
        *(f"python/{name}" for name in (*PYTHON_BACKEND_FILES, "triton_python_backend_stub")),
        "onnxruntime/model.py",
    }
    assert not any(path.is_symlink() for path in laid)
    assert os.access(tmp_path / "backends" / "python" / "triton_python_backend_stub", os.X_OK)


def test_a_server_is_started_told_what_it_needs_and_ended(installation: Installation, tmp_path: Path) -> None:
    with triton_server([tmp_path], installation=with_server(installation, SERVES), num_threads=2) as server:
        arguments, environment, folder, backends = json.loads((tmp_path / "seen.json").read_text())
        os.kill(server.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    port = server.address.rpartition(":")[2]
    assert f"--grpc-port={port}" in arguments
    assert "--grpc-address=127.0.0.1" in arguments
    assert sorted(backends) == ["onnxruntime", "python"]
    assert environment["LD_LIBRARY_PATH"].startswith(str(installation.libraries[0]))
    assert environment["PATH"].startswith(str(installation.python.parent))
    assert environment["CAPTORY_TRITON_THREADS"] == "2"
    assert not Path(folder).exists()


def test_shared_memory_that_the_server_leaves_is_swept(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "SHARED_MEMORY", tmp_path)
    of_another = tmp_path / "captory-triton-of-another-server"
    of_another.touch()
    with triton_server([tmp_path], installation=with_server(installation, SERVES)):
        arguments, _, _, _ = json.loads((tmp_path / "seen.json").read_text())
        told = [argument.partition("shm-region-prefix-name=")[2] for argument in arguments]
        (prefix,) = set(filter(None, told))
        left = tmp_path / f"{prefix}-region"
        left.touch()
    assert not left.exists()
    assert of_another.exists()


def test_a_server_that_ends_says_why(installation: Installation, tmp_path: Path) -> None:
    triton = with_server(installation, SAYS_AND_ENDS)
    with (
        pytest.raises(Unavailable, match=r"(?s)exit code 7.*picto cannot be loaded"),
        triton_server([tmp_path], installation=triton),
    ):
        pass


def test_a_server_that_is_never_ready_is_ended(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIES", str(tmp_path / "pid"))
    triton = with_server(installation, NEVER_READY)
    with (
        pytest.raises(Unavailable, match="did not start in time"),
        triton_server([tmp_path], installation=triton, start_timeout_s=4.0),
    ):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_port_that_another_took_first_is_not_the_end(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIES", str(tmp_path / "tries"))
    triton = with_server(installation, PORT_IS_TAKEN)
    with pytest.raises(Unavailable, match="already in use"), triton_server([tmp_path], installation=triton):
        pass
    assert (tmp_path / "tries").read_text() == "xxx"


def test_the_server_ends_with_its_parent(installation: Installation, tmp_path: Path) -> None:
    triton = with_server(installation, SERVES)
    values = {name: str(getattr(triton, name)) for name in ("python", "server", "python_backend", "stub")}
    parent = (
        "import json, os, sys; from pathlib import Path; from captory_export.triton.host import *\n"
        "paths = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}\n"
        "with triton_server([Path(sys.argv[2])], installation=Installation(**paths, libraries=())) as server:\n"
        "    print(server.pid, flush=True); sys.stdin.read(); os._exit(9)\n"
    )
    command = [sys.executable, "-c", parent, json.dumps(values), str(tmp_path)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        child = os.pidfd_open(int(process.stdout.readline()))
        process.communicate("")
    assert process.returncode == 9
    assert has_ended(child, timeout_s=20)


def has_ended(pidfd: int, timeout_s: float) -> bool:
    """Whether a process, not our own child, ends in time."""
    readable, _, _ = select.select([pidfd], [], [], timeout_s)
    os.close(pidfd)
    return bool(readable)
