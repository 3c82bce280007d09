"""F1 of reliability: SIGKILL of the whole tree, of the server, of the command; then resume, and the oracle."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository
from oracle import Verdict, judge
from PIL import Image

from captory_data.identity import identify
from captory_data.spec import JobSpec

COMMAND = Path(sys.executable).parent / "captory"
NUM_IMAGES = 700


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        (folder / f"{index:04d}.png").write_bytes(buffer.getvalue())
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_repository(tmp_path_factory.mktemp("repository"))


@contextmanager
def running(source: Path, out: Path, repository: Path) -> Iterator[subprocess.Popen[str]]:
    """A run on the fake backend, in a session of its own so that the whole tree can be killed."""
    command = [COMMAND, "run", source, "--out", out, "--family", f"{repository}/", "--json", "--quiet"]
    command += ["--mode", "basic"]  # the fake captioner's words may be none
    process = subprocess.Popen(
        command,
        env={**os.environ, "CAPTORY_BACKEND": "fake"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> bool:
    """Wait until something shows on disk; False when the process ended first."""
    while not happened():
        try:
            process.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            continue
        return False
    return True


def num_shards(out: Path) -> int:
    """Shards that the ledger acknowledges."""
    try:
        with closing(sqlite3.connect(f"file:{out}/ledger.sqlite?mode=ro", uri=True)) as ledger:
            return int(ledger.execute("select count(*) from shards").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet, or being written
        return -1


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def finish(source: Path, out: Path, repository: Path) -> tuple[int, dict[str, int], str]:
    with running(source, out, repository) as process:
        stdout, stderr = process.communicate(timeout=200)
        return process.returncode, json.loads(stdout or "{}"), stderr


def verdict(source: Path, out: Path) -> Verdict:
    spec = JobSpec(**json.loads((out / "manifest.json").read_text())["job"])
    return judge(out, {identify(spec, path.name, 0, 0).id for path in source.iterdir()})


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_a_killed_tree_resumes_without_loss(source: Path, repository: Path, tmp_path: Path, shards: int) -> None:
    out = tmp_path / "out"
    with running(source, out, repository) as process:
        assert until(process, lambda: num_shards(out) >= shards)
        os.killpg(process.pid, signal.SIGKILL)
    code, summary, stderr = finish(source, out, repository)
    assert code == 0, stderr
    assert summary["images"] + summary["skipped"] == NUM_IMAGES
    assert summary["skipped"] >= 256 * shards
    found = verdict(source, out)
    assert found.clean, found
    assert len(found.published) == NUM_IMAGES


def test_a_killed_server_is_started_again(source: Path, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(source, out, repository) as process:
        assert until(process, lambda: num_shards(out) >= 1)
        for child in children(process):
            os.kill(child, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["images"] == NUM_IMAGES
    assert verdict(source, out).clean


def test_a_killed_command_leaves_no_server_behind(source: Path, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(source, out, repository) as process:
        assert until(process, lambda: num_shards(out) >= 1)
        [server] = children(process)
        process.kill()
        process.wait()
        watcher = subprocess.Popen(["tail", f"--pid={server}", "-f", "/dev/null"])
        assert watcher.wait(timeout=30) == 0
    assert finish(source, out, repository)[0] == 0
    assert verdict(source, out).clean


def test_one_interrupt_drains_and_publishes(source: Path, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(source, out, repository) as process:
        assert until(process, lambda: num_shards(out) >= 1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    summary = json.loads(stdout)
    assert 256 <= summary["images"] < NUM_IMAGES
    spec = JobSpec(**json.loads((out / "manifest.json").read_text())["job"])
    wanted = {identify(spec, path.name, 0, 0).id for path in source.iterdir()}
    found = judge(out, wanted, complete=False)
    assert found.clean, found
    assert len(found.published) == summary["images"]
